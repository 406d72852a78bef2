"""Which tokens of a text an assistant's turn consists of."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from arctic_huggingface.chat.refusals import NO_MASK, UnusableChat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arctic_huggingface.chat.turns import Turn

    Span = tuple[int, int]


class TurnTokens(NamedTuple):
    """The tokens of a turn: from ``first`` on, those of its answer from ``answer`` on, up to ``last`` (exclusive)."""

    first: int
    answer: int
    last: int


class QuickPlaces(Protocol):
    """Where the tokens of a text are, as far as it can be told without looking at each of them."""

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def first_from(self, character: int) -> int | None:
        """The token that starts at this character, when the one before ends there or earlier; otherwise None."""
        ...

    def around(self, character: int, least: int) -> int | None:
        """The token that this character is in; None where it starts before the character ``least``."""
        ...


def quick_tokens(places: QuickPlaces, turn: Turn, left_out: Span, length: int) -> TurnTokens | None:
    """The tokens of a turn whose boundaries are boundaries of tokens, without looking at each token of the text.

    Args:
        places: where the tokens are.
        turn: the turn.
        left_out: as of ``TokenPlaces.tokens``.
        length: characters of the text.

    Returns:
        None where only ``TokenPlaces`` can tell.
    """
    first = places.first_from(turn.start)
    if turn.end_token >= 0:
        last = places.first_from(turn.end_token)
        last = None if last is None else last + 1
    else:
        last = len(places) if turn.stop == length else places.first_from(turn.stop)
    if first is None or last is None:
        return None
    left_out_end, answer_start = left_out
    if answer_start == turn.start:
        return TurnTokens(first, first, last)
    answer = places.around(answer_start, left_out_end)
    return None if answer is None else TurnTokens(first, min(answer, last), last)


class OffsetPlaces:
    """Where the tokens of a text are, from what the tokenizers library gives for it with offsets."""

    def __init__(self, encoding: Any) -> None:
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.encoding)

    def first_from(self, character: int) -> int | None:
        token: int | None = self.encoding.char_to_token(character)
        if token is None or self.encoding.token_to_chars(token)[0] != character:
            return None
        if token:
            start, end = self.encoding.token_to_chars(token - 1)
            if end > character or start == end:
                return None
        return token

    def around(self, character: int, least: int) -> int | None:
        token: int | None = self.encoding.char_to_token(character)
        return None if token is None or self.encoding.token_to_chars(token)[0] < least else token


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

    def tokens(self, turn: Turn, left_out: Span) -> TurnTokens:
        """The tokens of a turn, from its first to one past its end-of-turn token.

        That is the last special token after what was said, when only white space follows it in the turn. Without such a
        token the turn goes on to its end.

        Args:
            turn: the turn.
            left_out: where what is left out at its start ends, and where its answer starts after white space.
        """
        first, last = self._first_from(turn.start), self._first_from(turn.stop)
        answer = first
        if left_out[1] > turn.start:
            answer = self._first_from(left_out[1])
            if self.across(left_out[1]) is not None:  # white space that is one token with the answer
                answer -= 1
        end = self._end_token(first, last, turn.said)
        last = last if end is None else end + 1
        return TurnTokens(first, min(answer, last), last)

    def cuts(self, turns: Sequence[Turn], left_out: Sequence[Span]) -> list[int]:
        """Where tokens reach across the boundaries of turns, in characters."""
        cuts: set[int] = set()
        for turn, (left_out_end, answer_start) in zip(turns, left_out, strict=True):
            if turn.start == turn.stop:
                continue
            boundaries = [turn.start]
            token = self.across(answer_start)
            if token is not None and self.starts[token] < left_out_end:
                boundaries.append(left_out_end)
            if self._end_token(self._first_from(turn.start), self._first_from(turn.stop), turn.said) is None:
                boundaries.append(turn.stop)
            cuts.update(boundary for boundary in boundaries if self.across(boundary) is not None)
        return sorted(cuts)

    def across(self, character: int) -> int | None:
        """The token that begins before this character and reaches past it; None where two tokens meet.

        A special token that only takes the white space behind it along does not count: it is the same token without.
        """
        token = self._first_from(character) - 1
        if token < 0 or self.ends[token] <= character:
            return None
        if self.ids[token] in self.special_ids and self.text[character : self.ends[token]].isspace():
            return None
        return token

    def written(self, token: int) -> str:
        """The text of a token."""
        return self.text[self.starts[token] : self.ends[token]]

    def _first_from(self, character: int) -> int:
        """The first token that starts at this character or after it."""
        return bisect_left(self.starts, character)

    def _end_token(self, first: int, last: int, said: int) -> int | None:
        for token in range(last - 1, first - 1, -1):
            if self.ids[token] in self.special_ids:
                return token if self.starts[token] >= said else None
            if self.written(token).strip():
                return None
        return None
