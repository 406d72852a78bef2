"""Which characters each token of a text stands for, and so which tokens an assistant turn consists of."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from arctic_sft.refusals import NO_MASK, UnusableChat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arctic_sft.turns import Span


class TokenPlaces:
    """The tokens of one text and where they start and end in it, in characters.

    Args:
        ids: the tokens.
        offsets: start and end of each.
        text: the text.
        special_ids: ids of the tokenizer's special tokens.

    Raises:
        UnusableChat: the offsets go back and forth, as those of tokenizers that reorder text.
    """

    def __init__(self, ids: list[int], offsets: Sequence[Span], text: str, special_ids: frozenset[int]) -> None:
        self.ids = ids
        self.text = text
        self.special_ids = special_ids
        self.starts = [start for start, _ in offsets]
        self.ends = [end for _, end in offsets]
        if self.starts != sorted(self.starts):
            raise UnusableChat("the tokenizer's offsets do not follow the text", NO_MASK, "use another fast tokenizer")

    def first_from(self, character: int) -> int:
        """The first token that starts at this character or after it."""
        return bisect_left(self.starts, character)

    def across(self, character: int) -> int | None:
        """The token that begins before this character and reaches past it; None where two tokens meet.

        A special token that only takes the white space behind it along does not count: it is the same token without.
        """
        token = self.first_from(character) - 1
        if token < 0 or self.ends[token] <= character:
            return None
        if self.ids[token] in self.special_ids and self.text[character : self.ends[token]].isspace():
            return None
        return token

    def within(self, start: int, stop: int) -> Span:
        """The tokens of a turn, from its first to one past its end-of-turn token.

        That is the last special token which starts in the span, when only white space follows it there. Without such a
        token the turn goes on to the end of the span.
        """
        first, last = self.first_from(start), self.first_from(stop)
        for token in range(last - 1, first - 1, -1):
            if self.ids[token] in self.special_ids:
                return first, token + 1
            if self.written(token).strip():
                break
        return first, last

    def written(self, token: int) -> str:
        """The text of a token."""
        return self.text[self.starts[token] : self.ends[token]]
