"""Where the reasoning block at the start of an assistant's turn ends: ``<think>`` to ``</think>``."""

from __future__ import annotations

import re

from arctic_huggingface.chat.messages import Message, reasoning_of
from arctic_huggingface.chat.refusals import NO_MASK, UnusableChat

OPEN, CLOSE = "<think>", "</think>"
Span = tuple[int, int]

_SPACE = re.compile(r"\s*")


def reasoning_end(number: int, message: Message, text: str, start: int, stop: int) -> Span:
    """Where the block ends, and where what follows it starts, white space aside.

    Both are the start of the turn where it begins with no such block.

    Args:
        number: of the message, for errors.
        message: what the assistant said.
        text: the text of the chat.
        start: where the turn starts in it.
        stop: where the turn stops.

    Raises:
        UnusableChat: there is reasoning that stands in no block, or a block without end.
    """
    inside = _inside(text, start, stop)
    reasoning = reasoning_of(message).strip()
    if inside is None:
        if reasoning:
            raise UnusableChat(
                f"the reasoning of message {number} does not stand in a {OPEN} block, so it cannot be left out",
                NO_MASK,
                "set data.mask_reasoning: false, or give a template that writes the block",
            )
        return start, start
    if reasoning and text.startswith(reasoning, _after_space(text, inside, stop), stop):
        inside = _after_space(text, inside, stop) + len(reasoning)
    close = text.find(CLOSE, inside, stop)
    if close < 0:
        raise UnusableChat(f"the reasoning of message {number} has no {CLOSE}", NO_MASK, "mend the row, or remove it")
    end = close + len(CLOSE)
    return end, _after_space(text, end, stop)


def empty_reasoning_end(text: str, start: int, stop: int) -> Span:
    """Like ``reasoning_end``, for a block that holds nothing but white space."""
    inside = _inside(text, start, stop)
    close = stop if inside is None else _after_space(text, inside, stop)
    if not text.startswith(CLOSE, close, stop):
        return start, start
    end = close + len(CLOSE)
    return end, _after_space(text, end, stop)


def _inside(text: str, start: int, stop: int) -> int | None:
    """Where the inside of a block begins which the turn opens, or the generation prompt right before it."""
    begin = _after_space(text, start, stop)
    if text.startswith(OPEN, begin, stop):
        return begin + len(OPEN)
    opened = text[max(0, start - len(OPEN) - 8) : start].rstrip().endswith(OPEN)
    return start if opened else None


def _after_space(text: str, position: int, stop: int) -> int:
    return _SPACE.match(text, position, stop).end()  # type: ignore[union-attr]
