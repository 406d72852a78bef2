"""Tokenises texts and finds the tokens of the turns in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_huggingface.chat.byte_lengths import byte_lengths_of
from arctic_huggingface.chat.places import OffsetPlaces, TokenPlaces, TurnTokens, quick_tokens
from arctic_huggingface.chat.refusals import NO_MASK, UnusableChat
from arctic_huggingface.faults import INVALID_TEXT
from arctic_huggingface.texts import InvalidText, TextTokeniser
from arctic_training.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from arctic_huggingface.chat.places import QuickPlaces, Span
    from arctic_huggingface.chat.turns import Turn


class Text(NamedTuple):
    """A text, the turns in it whose tokens are wanted, and for each of these where what is left out at its start ends
    and where the answer starts after it: both at the start of the turn where nothing is."""

    text: str
    turns: Sequence[Turn] = ()
    left_out: Sequence[Span] = ()


class Tokens(NamedTuple):
    """The tokens of a text and of its turns."""

    ids: list[int]
    turns: Sequence[TurnTokens]


class Tokeniser:
    """Tokenises texts as they are: the chat template has written their special tokens.

    Args:
        tokenizer: a tokenizer; only fast ones tell where the tokens of turns are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.texts = TextTokeniser(tokenizer)
        self.backend = self.texts.backend
        self.byte_lengths = byte_lengths_of(tokenizer, self.backend) if self.backend else None
        special = {token_id: str(token) for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        if getattr(tokenizer, "split_special_tokens", False):
            special = {}  # in texts they are text
        self.special_ids = frozenset(special)
        self.specials = tuple(sorted(set(special.values()), key=len, reverse=True))

    def require_offsets(self) -> None:
        """Make sure that turns can be found.

        Raises:
            DataError: the tokenizer cannot tell which text a token stands for.
        """
        if self.backend is None:
            raise DataError(
                f"{type(self.tokenizer).__name__} cannot tell which text a token stands for, so no mask can be made",
                remedy="use a fast tokenizer, or train on whole chats with data.mask_inputs: false",
            )

    def __call__(self, texts: Sequence[Text]) -> Iterator[Tokens | UnusableChat]:
        """The tokens of each text, or why there are none.

        The first text with turns is looked at token by token. Where that tells something else than the quick way, all
        are.
        """
        quick: bool | None = None
        encodings = self.texts([text.text for text in texts], offsets=not self.byte_lengths)
        for text, encoding in zip(texts, encodings, strict=True):
            if isinstance(encoding, InvalidText):
                yield UnusableChat(encoding.reason, INVALID_TEXT, "mend the row, or remove it")
                continue
            if not text.turns:
                yield Tokens(encoding.ids, ())
                continue
            found = self._quickly(text, encoding) if quick is not False else None
            if found is None or quick is None:
                try:
                    exact = self._exactly(text)
                except UnusableChat as reason:
                    quick = bool(quick)
                    yield reason
                    continue
                if found:
                    quick = found == exact
                found = exact
            yield found

    def _quickly(self, text: Text, encoding: Any) -> Tokens | None:
        ids = encoding.ids
        places: QuickPlaces | None
        places = self.byte_lengths.places(text.text, ids) if self.byte_lengths else OffsetPlaces(encoding)
        if places is None:
            return None
        turns = []
        for turn, left_out in zip(text.turns, text.left_out, strict=True):
            tokens = quick_tokens(places, turn, left_out, len(text.text))
            if tokens is None:
                return None
            turns.append(tokens)
        return Tokens(ids, turns)

    def _exactly(self, text: Text) -> Tokens:
        [encoding] = self.texts([text.text], offsets=True)
        places = self._parted(text, TokenPlaces(encoding.ids, encoding.offsets, text.text, self.special_ids))
        turns = [places.tokens(*turn) for turn in zip(text.turns, text.left_out, strict=True)]
        return Tokens(places.ids, turns)

    def _parted(self, text: Text, places: TokenPlaces) -> TokenPlaces:
        """The same tokens, or where one reaches across a boundary of a turn, those of the parts that meet there."""
        cuts = places.cuts(text.turns, text.left_out)
        if not cuts:
            return places
        begins, ends = [0, *cuts], [*cuts, len(text.text)]
        parts = self.texts([text.text[begin:end] for begin, end in zip(begins, ends, strict=True)], offsets=True)
        ids = list(chain.from_iterable(part.ids for part in parts))
        if self.tokenizer.decode(ids) != self.tokenizer.decode(places.ids):
            token = places.across(cuts[0])
            assert token is not None, "cuts are where a token reaches across"
            at_start = cuts[0] in [turn.start for turn in text.turns]
            side = "begins before the assistant's text and reaches into it" if at_start else "reaches across its end"
            raise UnusableChat(
                f"the token {places.written(token)!r} {side}",
                NO_MASK,
                "separate the assistant's text by special tokens or line breaks in the chat template",
            )
        offsets = [
            (begin + start, begin + end)
            for begin, part in zip(begins, parts, strict=True)
            for start, end in part.offsets
        ]
        return TokenPlaces(ids, offsets, text.text, self.special_ids)
