"""What prepared rows depend on, in parts that can be compared, and the key that they come to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.config import Config, keys_of
from arctic_training.prepared import FORMAT
from arctic_training.redaction import without_secrets
from arctic_training.source_code import file_hash, source_hash

if TYPE_CHECKING:
    from arctic_training.data import DataConfig, DataFactory, SourceConfig
    from arctic_training.run import Run

KEY_LENGTH = 32
HELD_OTHERWISE = {"type", "sources", "eval_sources", "max_length"}
"""Keys of ``data`` that the parts hold in another form."""


def key_parts(run: Run, split: str, sources: Sequence[SourceConfig]) -> dict[str, Any] | None:
    """Everything that the prepared rows of these sources depend on; None when some of it cannot be known beforehand.

    Returns:
        JSON-able parts by name: content, code and options of the sources, options, tokenizer, code of the factory and
        of the hooks that rows go through.
    """
    loaded = [_source_parts(run, source) for source in sources]
    factory = run.component("data")
    code, hooks = source_hash(type(factory), _packages(run)), _hook_code(run)
    more = factory.fingerprint_parts()
    if code is None or hooks is None or more is None or any(part is None for part in loaded):
        return None
    parts = {
        "format": FORMAT,
        "use": "training" if split == "train" else "evaluation",
        "sources": loaded,
        "options": _data_options(run.config.data, factory, split),
        "max_length": factory.config.max_length or run.model_max_length,
        "tokenizer": _fingerprint_parts(run.component("tokenizer"), run.trainer.tokenizer),
        "factory": {"name": type(factory).__qualname__, "code": code, "plugin": _provider(run, factory.config), **more},
        "hooks": hooks,
    }
    return without_secrets(parts)  # they open a door and decide nothing behind it


def fingerprints(run: Run, sources: Sequence[SourceConfig]) -> list[dict[str, Any] | None]:
    """What each source says now of the rows that it would load."""
    return [_fingerprint_parts(run.make(source)) for source in sources]


def digest(parts: Mapping[str, Any]) -> str:
    """The key that parts come to."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:KEY_LENGTH]


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of parts differ: the path, and what stands there in each, None where one has nothing there."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            yield from differences(one.get(name), other.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(one, list) and isinstance(other, list):
        for number, (mine, theirs) in enumerate(zip_longest(one, other)):
            yield from differences(mine, theirs, f"{path}.{number}")
    elif one != other:
        yield path, one, other


def options_of(config: Config, besides: Set[str] = frozenset()) -> dict[str, Any]:
    """The keys of a section that prepared rows can depend on, with their values."""
    without_effect = besides | set(getattr(config, "without_effect", ()))
    return {
        info.name: _value(getattr(config, info.name))
        for info in keys_of(type(config))
        if info.affects_rows and info.name not in without_effect
    }


def _value(value: Any) -> Any:
    """A value, of sections within it the keys that count."""
    if isinstance(value, Config):
        return options_of(value)
    return [_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def _source_parts(run: Run, source: SourceConfig) -> dict[str, Any] | None:
    component = run.make(source)
    parts, code = _fingerprint_parts(component), source_hash(type(component), _packages(run))
    if parts is None or code is None:
        return None
    options = options_of(source, parts.keys())  # a part named like a key says what that comes to
    return {**parts, "code": code, "options": options, "plugin": _provider(run, source)}


def _fingerprint_parts(component: Any, *arguments: Any) -> dict[str, Any] | None:
    """What a component says of itself; where a class has a ``fingerprint`` of its own and no parts, that alone."""
    names = {"fingerprint", "fingerprint_parts"}
    owners = [cls for cls in type(component).__mro__ if names & vars(cls).keys()]
    asked: Any = type(component) if "fingerprint_parts" in vars(owners[0]) else owners[-1]
    parts = asked.fingerprint_parts(component, *arguments)
    return None if parts is None else dict(parts)


def _data_options(config: DataConfig, factory: DataFactory, split: str) -> dict[str, Any]:
    besides = set(HELD_OTHERWISE)
    if not config.train_eval_split[1]:
        besides.add("train_eval_split")
        # A class that says that it draws nothing cannot speak for one derived from it.
        if "draws" in vars(type(factory)) and not factory.draws():
            besides.add("seed")
    return options_of(config, besides)


def _packages(run: Run) -> set[str]:
    """The packages that plugins stand in; code of one that calls another's changes with both."""
    return {info.where.partition(":")[0].partition(".")[0] for info in run.plugins.plugins if info.distribution}


def _provider(run: Run, section: Any) -> str:
    from arctic_training.errors import PluginError

    try:
        info = run.plugins.registry.provider(section.kind, section.type)
    except PluginError:  # a class that an annotation names and nobody registered
        return ""
    return f"{info.name} {info.version}".strip()


def _hook_code(run: Run) -> dict[str, Any] | None:
    """Of each hook that rows go through, the implementations in their order, and a hash of the code of each; None where
    the code of one stands in no file."""
    found = {}
    for hook in ("arctic_load_data", "arctic_prepare_data"):
        implementations = run.plugins.implementations(hook)
        files = {plugin: Path(where.rpartition(":")[0]) for plugin, _, where in implementations}
        if not all(path.is_file() for path in files.values()):
            return None
        found[hook] = {
            "order": " > ".join(f"{plugin} ({kind})" if kind else plugin for plugin, kind, _ in implementations),
            "code": {plugin: file_hash(path) for plugin, path in files.items()},
        }
    return found
