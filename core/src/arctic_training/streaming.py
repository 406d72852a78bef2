"""How a data factory's rows become a stream: its sources, its encoder and its packs, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training.preparation import Preparation
from arctic_training.stream_loader import BlockReader, StreamLoader
from arctic_training.token_rows import PlannedRows, TokenRows
from arctic_training.token_tables import joined_in_memory
from arctic_training.wording import counted_by_name

if TYPE_CHECKING:
    from arctic_training.encoding import EncodedRows
    from arctic_training.run import Run
    from arctic_training.token_data import TokenDataFactory

LEAST_ROWS = 1000
"""Rows from which on the share of bad ones is looked at; of the first few it tells nothing."""


def stream_of(factory: TokenDataFactory) -> StreamLoader:
    """The loader of a factory's training sources."""
    config, run = factory.config, factory.run
    sources = config.sources_of("train")
    account = Preparation("train", sources, config)
    _say_what_is_passed_over(run)

    def open_reader(epoch: int) -> BlockReader:
        streams = [run.make(source).stream(source, source.split) for source in sources]
        weights = [source.weight for source in sources]
        return BlockReader(streams, weights, seed=config.seed, epoch=epoch, block_rows=config.stream_buffer)

    def plan(parts: list[EncodedRows], numbers: list[int]) -> PlannedRows:
        told = dict(account.counts)
        factory.preparation = account
        for part, number in zip(parts, numbers, strict=True):
            account.num_rows = max(account.counts.get("rows read", 0) + number, LEAST_ROWS)
            account.read(number, part.refused)
            for name, counted in part.counts.items():
                account.count(name, counted)
            if made := len(part.lengths) + part.num_left_out - number:
                account.count("rows made from several turns", made)
        rows = joined_in_memory([TokenRows(part.columns, part.lengths) for part in parts])
        planned = factory.plan(rows)
        _say_losses(run, told, account.counts)
        return planned

    return StreamLoader(
        open_reader,
        factory.encoder(),
        plan,
        factory.collate,
        seed=config.seed,
        num_workers=config.dl_num_workers,
        micro_batch_size=run.config.micro_batch_size,
        accumulation=run.config.gradient_accumulation_steps,
        world=run.world,
    )


def _say_what_is_passed_over(run: Run) -> None:
    """Name the plugins whose hooks change rows on a way that a stream does not take."""
    for name in ("arctic_load_data", "arctic_prepare_data"):
        others = [info.name for info in run.plugins.plugins if name in info.hooks and info.name != "core"]
        if others:
            run.warn(f"streaming: training rows do not go through {name} of {', '.join(others)}")


def _say_losses(run: Any, before: dict[str, int], now: dict[str, int]) -> None:
    """Note in the log what a block lost, with the totals so far; the first loss of each kind is said aloud."""
    for name, number in now.items():
        if name in ("rows read", "rows kept") or number == before.get(name, 0):
            continue
        text = f"data: train: {counted_by_name(number, name)} so far"
        run.say(text) if not before.get(name) else run.log.info(text)
