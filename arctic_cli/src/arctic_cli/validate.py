"""``arctic validate``: a recipe checked and resolved, with every error at once; no torch, network or side effects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arctic_cli.options import Settings
from arctic_cli.terminal import say, warn
from arctic_training.errors import ArcticError, PluginError, RecipeError

if TYPE_CHECKING:
    from arctic_training.config import ComponentConfig
    from arctic_training.trainer_config import TrainerConfig

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst", ".xz", ".bz2")
"""What ends the name of a file, and never that of a data set on the hub."""

SECTIONS = ("model", "tokenizer", "data", "loss", "optimizer", "scheduler", "engine")


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: valid, problems, recipe.")
@click.pass_context
def validate(context: click.Context, recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE and show what it comes to, without training.

    Overrides are key=value, as in `arctic run`. With -v the whole recipe is shown, and where each value comes from.
    """
    settings: Settings = context.obj
    try:
        config = _configure(settings, recipe, overrides)
    except ArcticError as error:
        if not as_json:
            raise
        _print_json({"valid": False, "problems": _problems(error), "recipe": None})
        context.exit(error.exit_code)
    if as_json:
        from arctic_training.dump import plain_recipe

        warnings = [*_warnings(config), *missing_files(config)]
        _print_json({"valid": True, "problems": [], "warnings": warnings, "recipe": plain_recipe(config)})
        return
    say(f"{recipe}: valid", fg="green")
    for note in missing_files(config):
        say(f"  {note}", fg="yellow")
    for warning in _warnings(config):
        warn(warning)
    if settings.verbosity > 0:
        from arctic_training.dump import dump

        say(dump(config).rstrip())
    elif settings.verbosity == 0:
        _print_summary(config)


def missing_files(config: TrainerConfig) -> list[str]:
    """A note for each file or folder of data, a model or a tokenizer that a recipe names and that is not on this
    machine, which need not be the one that trains: such a recipe is valid."""
    from arctic_training.config import walk

    recipe = config.recipe
    folders = [Path.cwd()] if recipe.path is None else [recipe.directory, Path.cwd()]
    notes: dict[str, str] = {}
    for place, info, value in walk(config):
        if info.name != "name_or_path" or not value:
            continue
        name = str(value).removeprefix("file://")
        path = Path(name).expanduser()
        if _is_one_file(name) and not any((folder / path).exists() for folder in folders):
            file, line, _ = recipe.position(place)
            note = f"not there: {name}, named {'at' if line else 'by'} {file}{f':{line}' if line else ''}"
            notes.setdefault(name, note)
    return list(notes.values())


def _is_one_file(name: str) -> bool:
    """Whether a name can be nothing but a path of this machine, and one alone."""
    if "://" in name or any(sign in name for sign in "*?["):
        return False
    return name.startswith(("/", "./", "../", "~")) or Path(name.lower()).suffix in DATA_SUFFIXES


def _configure(settings: Settings, recipe: str, overrides: tuple[str, ...]) -> TrainerConfig:
    from arctic_training.api import configure

    return configure(recipe, overrides, block=settings.block, code=settings.code, trust=settings.trust)


def _print_summary(config: TrainerConfig) -> None:
    rows = list(_summary(config))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        say(f"  {name.ljust(width)}  {text}")


def _summary(config: TrainerConfig) -> Iterator[tuple[str, str]]:
    """What was chosen for each stage and who provides it."""
    yield "trainer", _chosen(config, config, "trainer")
    for name in SECTIONS:
        if name == "loss" and config.trainer_class.has_own_loss:
            yield name, "the trainer's own"
            continue
        section = getattr(config, name)
        subject = getattr(section, "name_or_path", None)
        yield name, _chosen(config, section, name) + (f": {subject}" if subject else "")
        if name == "data":
            for split, sources in (("train on", config.data.sources), ("evaluate on", config.data.eval_sources)):
                for source in sources:
                    yield split, _source(config, source)
    for entry in config.checkpoint:
        disabled = "" if entry.enabled else " (disabled)"
        yield "checkpoint", f"{_chosen(config, entry, 'checkpoint')}: {entry.output_dir}{disabled}"
    for name in config.sections:
        yield name, "a section of a plugin"
    code = getattr(config, "loaded_code", None)
    if code is not None:
        yield "code", f"{code.path} (sha256 {code.sha256[:12]})"


def _source(config: TrainerConfig, source: Any) -> str:
    place = getattr(source, "name_or_path", None)
    parts = [_chosen(config, source, "data_source"), str(place) if place else "", f"split {source.split}"]
    return ": ".join([parts[0], ", ".join(part for part in parts[1:] if part)])


def _chosen(config: TrainerConfig, section: ComponentConfig, kind: str) -> str:
    """``sft (arctic-plugin-sft 0.1.0)``."""
    component = config.trainer_class if section is config else section.component
    if component is None:
        return f"{section.type or 'auto'} (chosen when the run starts)"
    try:
        info = config.plugin_manager.registry.provider(kind, section.type)
        provider = info.source or info.name  # the recipe's own code has no distribution
    except PluginError:
        provider = component.__module__
    return f"{section.type} ({provider})"


def _warnings(config: TrainerConfig) -> list[str]:
    broken = [f"{str(each.error).splitlines()[0]}; arctic run stops on it" for each in config.plugin_manager.broken]
    return [*config.warnings, *broken]


def _problems(error: ArcticError) -> list[dict[str, Any]]:
    if isinstance(error, RecipeError):
        return [
            {
                "message": problem.message,
                "path": problem.path,
                "file": problem.file,
                "line": problem.line,
                "column": problem.column,
                "remedy": problem.remedy,
            }
            for problem in error.problems
        ]
    place = {"path": "", "file": error.where or "", "line": 0, "column": 0}
    return [{"message": error.message, **place, "remedy": error.remedy or ""}]


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, default=str))
