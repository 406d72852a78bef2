"""What prepared rows depend on, in parts that can be compared, and the key that they come to."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.config import Config, keys_of
from arctic_training.prepared import FORMAT

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
    code = source_hash(type(factory))
    if code is None or any(part is None for part in loaded):
        return None
    return {
        "format": FORMAT,
        "use": "training" if split == "train" else "evaluation",
        "sources": loaded,
        "options": _data_options(run.config.data, factory, split),
        "max_length": factory.config.max_length or run.model_max_length,
        "tokenizer": dict(run.component("tokenizer").fingerprint_parts(run.trainer.tokenizer)),
        "factory": {"name": type(factory).__qualname__, "code": code, "plugin": _provider(run, factory.config)},
        "hooks": _hook_code(run),
    }


def digest(parts: Mapping[str, Any]) -> str:
    """The key that parts come to."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:KEY_LENGTH]


def differences(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of parts differ: the path, and what stands there in each."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in dict.fromkeys([*one, *other]):
            yield from differences(one.get(name), other.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            yield from differences(mine, theirs, f"{path}.{number}")
    elif one != other:
        yield path, one, other


def options_of(config: Config, besides: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    """The keys of a section that prepared rows can depend on, with their values."""
    without_effect = besides | set(getattr(config, "without_effect", ()))
    return {
        info.name: getattr(config, info.name)
        for info in keys_of(type(config))
        if info.affects_rows and info.name not in without_effect
    }


def source_hash(cls: type) -> str | None:
    """A hash of the code behind a class, so that a changed line prepares the data anew; None where the code stands in
    no file, as in a notebook.

    Of each class in its line of bases, all modules of its package count: it may call any of them.
    """
    files: set[Path] = set()
    for base in cls.__mro__[:-1]:
        if base.__module__ == "abc":
            continue
        modules = [sys.modules.get(name) for name in (base.__module__.partition(".")[0], base.__module__)]
        file = next((file for module in modules if (file := getattr(module, "__file__", None))), None)
        if file is None:
            return None
        path = Path(file)
        files.update(path.parent.rglob("*.py") if path.name == "__init__.py" else [path])
    return _hash_of_files(files, cls.__qualname__)


def _source_parts(run: Run, source: SourceConfig) -> dict[str, Any] | None:
    component = run.make(source)
    content, code = component.fingerprint(), source_hash(type(component))
    if content is None or code is None:
        return None
    return {"content": content, "code": code, "options": options_of(source), "plugin": _provider(run, source)}


def _data_options(config: DataConfig, factory: DataFactory, split: str) -> dict[str, Any]:
    besides = set(HELD_OTHERWISE)
    if not config.train_eval_split[1]:
        besides.add("train_eval_split")
        # A class that says that it draws nothing cannot speak for one derived from it.
        if "draws" in vars(type(factory)) and not factory.draws():
            besides.add("seed")
    return options_of(config, besides)


def _provider(run: Run, section: Any) -> str:
    from arctic_training.errors import PluginError

    try:
        info = run.plugins.registry.provider(section.kind, section.type)
    except PluginError:  # a class that an annotation names and nobody registered
        return ""
    return f"{info.name} {info.version}".strip()


def _hook_code(run: Run) -> list[list[str]]:
    """The hook implementations that rows go through, and a hash of the package or file that each stands in."""
    found = []
    for hook in ("arctic_load_data", "arctic_prepare_data"):
        for plugin, kind, where in run.plugins.implementations(hook):
            path = Path(where.rpartition(":")[0])
            found.append([hook, plugin, kind, _hash_of_files(_package_files(path), "") if path.is_file() else ""])
    return found


def _package_files(path: Path) -> list[Path]:
    """The Python files of the package that a file belongs to, or the file alone."""
    package = None
    while (path.parent / "__init__.py").is_file():
        path = package = path.parent
    return [path] if package is None else list(package.rglob("*.py"))


def _hash_of_files(files: Iterable[Path], name: str) -> str:
    total = hashlib.sha256(name.encode())
    for path in sorted(files):
        total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
