"""``arctic cache``: the prepared rows that are kept, why a recipe does not find its own, and what may go."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arctic_cli.options import Settings
from arctic_cli.terminal import print_table, say
from arctic_training.wording import counted

if TYPE_CHECKING:
    from arctic_training.cache_entries import Entry

DAY = 24 * 3600
LONGEST_VALUE = 60
"""Characters of a value that is printed."""
_HASH = re.compile("[0-9a-f]{40}")
_UNITS = {"h": 3600, "d": DAY, "w": 7 * DAY}

directory_option = click.option(
    "--dir", "directory", metavar="DIR", help="The recipe's data.cache_dir; ARCTIC_HOME or the user's cache by default."
)


@click.group()
def cache() -> None:
    """Show and clear the prepared data that is kept."""


@cache.command("ls")
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_entries(directory: str | None, as_json: bool) -> None:
    """Show what is kept, the last used first."""
    from arctic_training.cache_entries import entries
    from arctic_training.data_cache import cache_directory

    place = cache_directory(directory)
    found = entries(place)
    if as_json:
        click.echo(json.dumps([_described(entry) for entry in found], indent=2))
        return
    if found:
        print_table(("KEY", "SPLIT", "STATE", "SIZE", "LAST USED", "RECIPE"), [_row(entry) for entry in found])
    say(f"{_entries(found)}, {_size(sum(entry.size for entry in found))} in {place}")


@cache.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.pass_obj
def explain(settings: Settings, recipe: str, overrides: tuple[str, ...]) -> None:
    """Tell whether the data of RECIPE is kept, and if not, what differs from the nearest that is."""
    from arctic_cli.preparing import preparing
    from arctic_training.cache_entries import entries
    from arctic_training.data_cache import cache_directory

    with preparing(recipe, overrides, settings, rows=False) as run:
        found = entries(cache_directory(run.config.data.cache_dir))
        for name in ("train", *run.config.data.eval_sets):
            _explain(run, name, found)


def _explain(run: Any, name: str, found: list[Entry]) -> None:
    from arctic_training.cache_entries import nearest
    from arctic_training.cache_key import digest, key_parts

    split = "train" if name == "train" else "eval"
    parts = key_parts(run, split, run.config.data.sources_of(split, name))
    if parts is None:
        say(f"{name}: never kept, since a source or the factory cannot tell beforehand what its rows depend on")
        return
    parts = json.loads(json.dumps(parts, default=str))
    key = digest(parts)
    if any(entry.key == key and entry.whole for entry in found):
        say(f"{name}: kept as {key}", fg="green")
        return
    say(f"{name}: not kept; it would be {key}", fg="yellow")
    best = nearest(parts, name, found)
    if best is None:
        say("  nothing else that was prepared for it is kept")
        return
    entry, differing = best
    recipe = f", from {Path(entry.recipe).name}" if entry.recipe else ""
    say(f"  the nearest is {entry.key}, prepared {_date(entry.created)}{recipe}, where")
    for path, theirs, mine in differing:
        say(f"    {_difference(path, theirs, mine)}")


def _difference(path: str, theirs: Any, mine: Any) -> str:
    """What stands at a path, where it is short enough to be read; else that it differs."""
    if theirs is None and isinstance(mine, (Mapping, str)):
        return f"{path} is only here"
    if mine is None and isinstance(theirs, (Mapping, str)):
        return f"{path} is only there"
    texts = [json.dumps(value) for value in (mine, theirs)]
    if any(_HASH.search(text) or len(text) > LONGEST_VALUE for text in texts):
        return f"{path} differs"
    return f"{path} differs: {texts[0]} here, {texts[1]} there"


@cache.command()
@directory_option
@click.option("--older-than", metavar="AGE", default="30d", show_default=True, help="Last used so long ago: 12h, 4w.")
@click.option("--all", "everything", is_flag=True, help="All entries, however old.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
def gc(directory: str | None, older_than: str, everything: bool, dry_run: bool) -> None:
    """Remove entries that were not used for long, and what killed processes left half-way."""
    from arctic_training.cache_entries import entries, remove, remove_locks
    from arctic_training.data_cache import cache_directory

    limit = time.time() - _seconds(older_than)
    place = cache_directory(directory)
    found = entries(place)
    doomed = [entry for entry in found if everything or not entry.whole or entry.used < limit]
    gone = [entry for entry in doomed if entry.state != "in preparation" and (dry_run or remove(entry))]
    if not dry_run:
        remove_locks(place)
    for entry in doomed:
        state = "in preparation, stays" if entry not in gone else "would go" if dry_run else "gone"
        say(f"{state}: {entry.key}  {_size(entry.size)}  {entry.split}, last used {_date(entry.used)}")
    verb = "would be freed" if dry_run else "freed"
    say(f"{_entries(gone)}, {_size(sum(entry.size for entry in gone))} {verb}")


def _entries(found: Sequence[Entry]) -> str:
    return counted(len(found), "entry", "entries")


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+)([hdw])", age.strip())
    if match is None:
        raise click.UsageError(f"--older-than is a number of hours, days or weeks such as 12h, 30d, 4w, not {age!r}")
    return int(match[1]) * _UNITS[match[2]]


def _row(entry: Entry) -> tuple[str, ...]:
    recipe = Path(entry.recipe).name if entry.recipe else "-"
    return entry.key, entry.split or "-", entry.state, _size(entry.size), _date(entry.used), recipe


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "path": str(entry.path),
        "split": entry.split,
        "state": entry.state,
        "bytes": entry.size,
        "created": entry.created,
        "used": entry.used,
        "recipe": entry.recipe,
        "parts": entry.parts,
    }


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit holds everything")
