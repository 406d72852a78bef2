"""Prepared rows as text in which one sees what is trained: runs of tokens, each trained or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from arctic_training.loss import IGNORE_INDEX
from arctic_training.token_rows import POSITIONS, SOURCES


class Stretch(NamedTuple):
    """Text of tokens that follow each other and are all trained, or all not."""

    text: str
    trained: bool


class Document(NamedTuple):
    """One document of a row: its stretches, its tokens and how many are trained, the number of its source."""

    stretches: list[Stretch]
    tokens: int
    trained_tokens: int
    source: int


def documents_of(row: Mapping[str, Any], tokenizer: Any) -> Iterator[Document]:
    """The documents of a prepared row, with every token written out, special ones too.

    Args:
        row: ``input_ids``, ``labels``, and ``position_ids`` where the row is a pack.
        tokenizer: with ``decode``.
    """
    ids, labels = (list(map(int, row[name])) for name in ("input_ids", "labels"))
    positions = list(map(int, row.get(POSITIONS, range(len(ids)))))
    sources = row.get(SOURCES)
    firsts = [number for number, position in enumerate(positions) if position == 0] or [0]
    for begin, end in zip(firsts, [*firsts[1:], len(ids)], strict=True):
        trained = [label != IGNORE_INDEX for label in labels[begin:end]]
        yield Document(
            list(_stretches(ids[begin:end], trained, tokenizer)),
            end - begin,
            sum(trained),
            int(sources[begin]) if sources is not None else 0,
        )


def _stretches(ids: list[int], trained: list[bool], tokenizer: Any) -> Iterator[Stretch]:
    for is_trained, group in groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1]):
        yield Stretch(_text([token for token, _ in group], tokenizer), is_trained)


def _text(ids: list[int], tokenizer: Any) -> str:
    try:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    except TypeError:  # a tokenizer of a plugin's own
        return tokenizer.decode(ids)
