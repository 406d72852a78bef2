"""``arctic data``: prepares what a recipe trains and evaluates on, and shows it in figures, losses and rows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from arctic_cli.options import Settings
from arctic_cli.preparing import preparing
from arctic_cli.terminal import say, wants_color
from arctic_training.errors import UsageError
from arctic_training.wording import counted, counted_by_name

if TYPE_CHECKING:
    from arctic_training.prepared import PreparedRows
    from arctic_training.row_view import Document
    from arctic_training.run import Run
    from arctic_training.trainer_config import TrainerConfig

BAR = 40
"""Characters of the longest bar of a histogram."""


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--show", metavar="N", type=click.IntRange(0), default=0, help="Print N rows, what is trained marked.")
@click.option("--split", metavar="NAME", help="Only train, or the evaluation set of this name.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
@click.pass_context
def data(
    context: click.Context, recipe: str, overrides: tuple[str, ...], show: int, split: str | None, as_json: bool
) -> None:
    """Prepare the data of RECIPE and show what it comes to, without training.

    Rows are kept in the cache, where `arctic run` finds them. Overrides are key=value, as in `arctic run`.
    """
    show_data(recipe, overrides, context.obj, show=show, split=split, as_json=as_json)


def show_data(
    recipe: str,
    overrides: tuple[str, ...],
    settings: Settings,
    *,
    show: int = 0,
    split: str | None = None,
    as_json: bool = False,
) -> None:
    """Prepare and print; see ``data``."""

    def check(config: TrainerConfig) -> None:
        known = ["train", *config.data.eval_sets]
        if split and split not in known:
            raise UsageError(f"there is no data {split!r}", remedy=f"--split is one of {', '.join(known)}")

    with preparing(recipe, overrides, settings, check=check) as run:
        names = [split] if split else list(run.all_rows)
        if as_json:
            click.echo(json.dumps({name: _as_json(run, name, show) for name in names}, indent=2))
            return
        for name in names:
            _print_figures(name, run.data_facts[name])
            _print_rows(run, name, run.all_rows[name], show)


def _as_json(run: Run, name: str, show: int) -> dict[str, Any]:
    """The figures, and with ``show`` that many rows: of each its documents, of each the stretches of its text."""
    facts = run.data_facts[name]
    if not show:
        return facts
    from arctic_training.row_view import documents_of

    shown = [
        [
            {
                "tokens": document.tokens,
                "trained_tokens": document.trained_tokens,
                "stretches": [stretch._asdict() for stretch in document.stretches],
            }
            for document in documents_of(row, run.trainer.tokenizer)
        ]
        for row in run.all_rows[name][:show]
    ]
    return {**facts, "shown": shown}


def _print_figures(name: str, facts: dict[str, Any]) -> None:
    say(f"{name}: {_rows_in_words(facts)}", bold=True)
    for label, text in _figures(facts):
        say(f"  {label:16}{text}")
    for label, number in facts.get("counts", {}).items():
        if number and label not in ("rows read", "rows kept"):
            say(f"  {counted_by_name(number, label)}", fg="yellow")
    for refused in facts.get("refused", ()):
        say(f"    {refused['where']}: {refused['reason']}")
    histogram = {int(limit): number for limit, number in facts.get("lengths", {}).get("histogram", {}).items()}
    most = max(histogram.values(), default=0)
    for limit, number in histogram.items():
        span = f"{limit // 2 + 1:,} to {limit:,}" if limit > 1 else "1"
        say(f"  {span:>18} tokens {number:>10,}  {'#' * math.ceil(BAR * number / most)}")
    for source in facts.get("sources", ()):
        share = source["trained_tokens"] / max(facts["trained_tokens"], 1)
        say(
            f"  source {source['name']}: {counted(source['documents'], 'row')}, {counted(source['tokens'], 'token')}, "
            f"{source['trained_tokens']:,} trained ({share:.1%} of all)"
        )


def _rows_in_words(facts: dict[str, Any]) -> str:
    if "fill" in facts:
        return f"{counted(facts['documents'], 'row')} in {counted(facts['rows'], 'pack')}"
    return counted(facts["rows"], "row")


def _figures(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    counts = facts.get("counts", {})
    if "rows read" in counts:
        kept = f", {counts['rows kept']:,} kept" if "rows kept" in counts else ""
        yield "rows read", f"{counts['rows read']:,}{kept}"
    yield "tokens", f"{facts['tokens']:,}"
    if "trained_tokens" in facts:
        yield "trained tokens", f"{facts['trained_tokens']:,} ({facts['trained_tokens'] / max(facts['tokens'], 1):.1%})"
    if "fill" in facts:
        yield "fill of packs", f"{facts['fill']:.2%}"
    quantiles = facts.get("lengths", {}).get("quantiles", {})
    if quantiles:
        yield "lengths", ", ".join(f"{name} {length:,}" for name, length in quantiles.items())
    yield "cache", facts["cache"] or "none, since a source cannot tell beforehand what it would load"


def _print_rows(run: Run, name: str, rows: PreparedRows, count: int) -> None:
    from arctic_training.row_view import documents_of

    names = run.config.data.source_names("train" if name == "train" else "eval", name)
    for number in range(min(count, len(rows))):
        documents = list(documents_of(rows[number], run.trainer.tokenizer))
        for place, document in enumerate(documents):
            of = f", document {place + 1} of {len(documents)}" if len(documents) > 1 else ""
            source = f", {names[document.source]}" if len(names) > 1 else ""
            say()
            say(
                f"--- {name} row {number}{of}{source}: {document.tokens} tokens, {document.trained_tokens} trained",
                bold=True,
            )
            click.echo(_marked(document))


def _marked(document: Document) -> str:
    """The text with what is trained in colour, or in double brackets where there are no colours."""
    context = click.get_current_context(silent=True)
    if wants_color(sys.stdout, context.color if context else None):
        return "".join(click.style(text, fg="green") if trained else text for text, trained in document.stretches)
    return "".join(f"[[{text}]]" if trained else text for text, trained in document.stretches)
