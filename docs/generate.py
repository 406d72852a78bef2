"""Writes the references of the documentation from the code: every key of a recipe, and every hook.

    python docs/generate.py            writes docs/reference/
    python docs/generate.py --check    says which file is out of date, and ends with 1 if one is

What stands there comes from the config classes of the installed plugins of this repository and from the docstrings of
`arctic_training.hookspecs`, so nothing in it is written twice.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from arctic_training import hookspecs
from arctic_training.config import Config, FreeConfig, KeyInfo, keys_of
from arctic_training.dump import plain
from arctic_training.plugins import PluginManager, create_plugin_manager
from arctic_training.signatures import specifications_of
from arctic_training.trainer_config import TrainerConfig

FOLDER = Path(__file__).parent / "reference"
PLUGINS = tuple(
    sorted(path.name for path in (FOLDER.parents[1] / "plugins").iterdir() if (path / "pyproject.toml").is_file())
)
"""The plugins of this repository; others that happen to be installed are left out."""

KINDS = {
    "trainer": ("Trainers", "type", "The top of the recipe."),
    "model": ("model", "model", "The model to train."),
    "tokenizer": ("tokenizer", "tokenizer", "The tokenizer; the model's own by default."),
    "data": ("data", "data", "What to train and evaluate on, and how rows are made of it."),
    "data_source": ("Data sources", "data.sources", "Each entry of `data.sources` and `data.eval_sources`."),
    "loss": ("loss", "loss", "The loss."),
    "optimizer": ("optimizer", "optimizer", "The optimizer."),
    "scheduler": ("scheduler", "scheduler", "The schedule of the learning rate."),
    "engine": ("engine", "engine", "What runs backward and the optimizer step."),
    "checkpoint": ("checkpoint", "checkpoint", "What to save: one mapping, or a list of them."),
}
"""The sections whose keys depend on their `type`: heading, place in the recipe, and what they are."""

MACHINE_DEFAULTS = {("data", "num_proc"): "the machine's cores"}
"""Defaults that differ from machine to machine, in words."""

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
TYPE_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path", Any: "any value"}
NOTE = "<!-- Written by docs/generate.py from the code: change it there, then run `python docs/generate.py`. -->\n"


def main(words: list[str] | None = None) -> int:
    """Write the references, or compare them.

    Returns:
        0, or 1 when `--check` finds a file that is out of date.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; say what is out of date")
    check = parser.parse_args(words).check
    stale = []
    for name, text in references().items():
        path = FOLDER / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"written: docs/reference/{name}")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    return 0


def references() -> dict[str, str]:
    """The text of each reference by its file name."""
    manager = create_plugin_manager(only=PLUGINS, environment={})
    manager.refuse_broken()
    return {"recipe.md": recipe_reference(manager), "hooks.md": hook_reference()}


# ---- the recipe


def recipe_reference(manager: PluginManager) -> str:
    """Every key, by section and by the component that brings it."""
    lines = [
        NOTE,
        "# Recipe reference",
        "",
        "Every key of a recipe, its type, its default, and what it means. A number may be written as `1e-5`, `10%`,",
        "`2^20`, `1_000`, `1.5k` (powers of 1000: `k m b t`) or `32Ki` (powers of 1024: `Ki Mi Gi Ti`). A key that is",
        "not listed here is an error, with its line and the nearest key. `arctic validate RECIPE -v` shows a recipe",
        "with all its defaults, and where each value comes from.",
        "",
        "## Top level",
        "",
        *table(keys_of(TrainerConfig)),
        "",
        "`extends: other.yaml` takes everything from another recipe; its path counts from this one, whose keys win.",
        "",
    ]
    for info in keys_of(TrainerConfig):
        if _is_config(info.type) and not hasattr(info.type, "component"):
            lines += [f"## {info.name}", "", *table(keys_of(info.type)), ""]
    for kind in KINDS:
        lines += _kind(kind, manager)
    lines += _contributed(manager)
    return "\n".join(lines).rstrip() + "\n"


def _kind(kind: str, manager: PluginManager) -> Iterator[str]:
    heading, place, what = KINDS[kind]
    yield from (f"## {heading}", "", what, "")
    base = TrainerConfig if kind == "trainer" else _base_config(kind)
    common = [] if kind == "trainer" else list(keys_of(base))
    if common:
        yield from (f"Keys of every `type` in `{place}`:", "", *table(common, section=kind), "")
    own = {info.name: info for info in keys_of(base)}
    for name in manager.registry.names(kind):
        component = manager.registry.get(kind, name)
        provider = manager.registry.provider(kind, name)
        yield from (f"### {heading} `{name}`" if kind == "trainer" else f"### {place} `{name}`", "")
        yield f"{_first_sentence(component)} Comes with `{provider.distribution}`."
        yield ""
        added = [info for info in keys_of(component.config_class()) if _said(info) != _said(own.get(info.name))]
        yield from (*table(added, section=kind), "") if added else ("No keys besides those of every `type`.", "")


def _base_config(kind: str) -> type[Config]:
    """The config class that every component of a kind has."""
    for info in keys_of(TrainerConfig):
        for candidate in (info.type, *get_args(info.type)):
            if _is_config(candidate) and getattr(candidate, "kind", "") == kind:
                return candidate
    from arctic_training.data import SourceConfig

    assert kind == "data_source", kind
    return SourceConfig


def _contributed(manager: PluginManager) -> Iterator[str]:
    for plugin, sections in manager.collect("arctic_register_config_sections"):
        for name, section in sections.items():
            yield from (f"## {name}", "", f"{_first_sentence(section)} Comes with `{plugin.distribution}`.", "")
            if not issubclass(section, FreeConfig):
                yield from (*table(keys_of(section)), "")


def table(keys: Iterable[KeyInfo], *, section: str = "") -> list[str]:
    """A Markdown table of keys."""
    rows = [
        f"| `{info.name}` | {_cell(type_text(info))} | {_cell(_default(info, section))} | {_cell(_meaning(info))} |"
        for info in keys
    ]
    return ["| key | type | default | meaning |", "|---|---|---|---|", *rows]


def type_text(info: KeyInfo) -> str:
    """The type of a key with its bounds, in the words of a recipe's author."""
    bounds = " and ".join(f"{BOUNDS[name]} {bound:g}" for name, bound in info.bounds.items())
    return ", ".join(filter(None, (_type(info.type), bounds)))


def _type(expected: Any) -> str:
    origin, members = get_origin(expected), get_args(expected)
    if origin is Literal:
        return ", ".join(f"`{_yaml(member)}`" for member in members)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(member) for member in members)
    if origin in (list, tuple):
        if origin is tuple and Ellipsis not in members:
            return f"list of {len(members)}: {_type(members[0])}"
        return f"list of: {_type(members[0])}"
    if origin is dict or expected is dict:
        inner = members[1] if members else Any
        return "mapping" if inner is Any else f"mapping to {_type(inner)}"
    if expected is type(None):
        return "`null`"
    return "section" if _is_config(expected) else TYPE_WORDS.get(expected, getattr(expected, "__name__", str(expected)))


def _default(info: KeyInfo, section: str) -> str:
    if (section, info.name) in MACHINE_DEFAULTS:
        return MACHINE_DEFAULTS[section, info.name]
    if info.required:
        return "required"
    if info.name == "type" and info.default == "":
        return "the trainer's first"
    if isinstance(info.default, Config) or (_is_config(info.type) and info.default == {}):
        return "its defaults"
    return f"`{_yaml(info.default)}`"


def _meaning(info: KeyInfo) -> str:
    parts = [info.doc]
    if info.aliases:
        parts.append(f"Also: {', '.join(f'`{alias}`' for alias in info.aliases)}.")
    if info.deprecated:
        parts.append(f"Deprecated: {info.deprecated}.")
    if info.needs:
        parts.append(f"Needs `{info.needs}`.")
    if info.later:
        parts.append(f"Not there yet: {info.later}; `arctic run` refuses more than the default.")
    return " ".join(filter(None, parts))


def _yaml(value: Any) -> str:
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(item)}" for name, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _said(info: KeyInfo | None) -> Any:
    """What makes two keys the same in the eyes of a reader."""
    return info and (
        info.name,
        str(info.type),
        _yaml(None if info.required else info.default),
        info.doc,
        info.later,
        info.needs,
    )


def _is_config(expected: Any) -> bool:
    return isinstance(expected, type) and issubclass(expected, Config)


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text in which `<name>` is no HTML; what stands between backticks is code and stays."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def _first_sentence(documented: Any) -> str:
    text = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return _code(text)


def _code(text: str) -> str:
    """Code in docstrings as Markdown has it."""
    return text.replace("``", "`")


# ---- the hooks


def hook_reference() -> str:
    """Every hook in the order of `hookspecs.py`, under the banners that stand there."""
    source = inspect.getsource(hookspecs)
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    specifications = specifications_of(hookspecs)
    first, *rest = (inspect.getdoc(hookspecs) or "").split("\n\n")
    lines = [NOTE, "# Hook reference", "", _paragraph(first), ""]
    lines += [line for paragraph in rest for line in (_paragraph(paragraph), "")]
    lines += ["How to write an implementation, and what is refused: [Writing a plugin](../plugins.md).", ""]
    for banner, names in _sections(source, list(specifications)):
        lines += [f"## {banner}", ""]
        for name in names:
            lines += _hook(functions[name], specifications[name].firstresult)
    return "\n".join(lines).rstrip() + "\n"


def _sections(source: str, names: list[str]) -> list[tuple[str, list[str]]]:
    """The banners of hookspecs.py with the hooks below each."""
    sections: list[tuple[str, list[str]]] = []
    for match in re.finditer(r"^# ---- (?P<banner>[^-]+?) -+$|^def (?P<hook>arctic_\w+)", source, re.MULTILINE):
        if match["banner"]:
            sections.append((match["banner"].capitalize(), []))
        elif match["hook"] in names:
            sections[-1][1].append(match["hook"])
    return sections


def _hook(function: ast.FunctionDef, firstresult: bool) -> Iterator[str]:
    summary, *rest = inspect.cleandoc(ast.get_docstring(function) or "").split("\n\n")
    arguments = ", ".join(
        f"{each.arg}: {ast.unparse(each.annotation)}" for each in function.args.args if each.annotation
    )
    returned = ast.unparse(function.returns) if function.returns else "None"
    yield from (f"### {function.name}", "", _paragraph(summary), "")
    yield from ("```python", *_signature(function.name, arguments, returned), "```", "")
    yield from ("*The first answer that is not None wins.*" if firstresult else "*Every implementation is called.*", "")
    for block in rest:
        yield from _block(block.replace("Every implementation is called.", "").rstrip())


def _signature(name: str, arguments: str, returned: str) -> list[str]:
    """The signature, on one line where it fits, as a formatter would write it."""
    line = f"def {name}({arguments}) -> {returned}: ..."
    return [line] if len(line) <= 120 else [f"def {name}(", f"    {arguments}", f") -> {returned}: ..."]


def _block(block: str) -> Iterator[str]:
    """A part of a docstring: prose, or the arguments, or what is returned."""
    head, _, body = block.partition("\n")
    body = inspect.cleandoc(body)
    if head == "Args:":
        for entry in re.split(r"\n(?=\w[\w, ]*:)", body):
            names, _, meaning = entry.partition(":")
            yield f"- `{names}`: {_paragraph(meaning)}"
        yield ""
    elif head in ("Returns:", "Raises:"):
        yield from (f"**{head}** {_paragraph(body)}", "")
    else:
        yield from (_paragraph(block), "")


def _paragraph(text: str) -> str:
    return _escaped(_code(" ".join(text.split())))


if __name__ == "__main__":
    sys.exit(main())
