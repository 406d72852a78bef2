"""Chats to token ids and labels: what the tokenizer's chat template writes, and which of it is trained.

The trained tokens of each assistant turn follow from the structure of the template and never from looking for the
answer's text, which a prompt may quote, a template may strip, and a chat may hold twice. What cannot be established
this way is refused by name of its row.

Rules:

1. Which characters the assistant said: ``arctic_sft.turns``.
2. The text is tokenised as a whole, and a token belongs to the turn in which it starts. Where a token would begin
   before a turn and reach into it (a line break of the prompt and one of the answer), the text is tokenised in two
   parts that meet there, as they do when the model answers the prompt; if the parts then read differently, that is an
   error.
3. A turn is trained through its end-of-turn token: the last special token in it, when nothing but white space follows
   it there. That white space is not trained. Without such a token the turn is trained to its end.
4. The first token of a chat has no label, since nothing predicts it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from arctic_sft.places import TokenPlaces
from arctic_sft.refusals import NO_MASK, NOTHING_TO_TRAIN_ON, TWO_BOS, WRONG_TYPE, UnusableChat
from arctic_sft.turns import Rendered, TurnFinder
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow, DataError
from arctic_training.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMPTY_THINK = "<think>\n\n</think>\n\n"
"""What reasoning templates write at the start of an answer that holds no reasoning."""


class ChatEncoder:
    """Encodes chats with one tokenizer. Holds nothing else, so that it can be sent to worker processes.

    Args:
        tokenizer: with a chat template.
        mask_inputs: train only what the assistant said; otherwise everything but the first token.
        ignore_empty_think: leave out an empty reasoning block at the start of an assistant turn.

    Raises:
        DataError: the tokenizer has no chat template, or cannot tell which text a token stands for.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, mask_inputs: bool = True, ignore_empty_think: bool = False
    ) -> None:
        self.tokenizer = _without_post_processor(tokenizer)
        self.mask_inputs = mask_inputs
        self.ignore_empty_think = ignore_empty_think
        self.needs_turns = mask_inputs or ignore_empty_think
        self.finder = TurnFinder(tokenizer)
        if self.needs_turns and not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} cannot tell which text a token stands for, so no mask can be made",
                remedy="use a fast tokenizer, or train on whole chats with data.mask_inputs: false",
            )
        special = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
        self.special_ids = frozenset([*tokenizer.all_special_ids, *special])

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """Ids and labels of chats.

        Args:
            rows: mappings with ``messages``, a list of mappings with ``role`` and ``content``, and with ``tools``, the
                functions that the assistant may call, where there are any.
            places: where each chat comes from, such as ``row 7``, for errors.

        Returns:
            ``input_ids`` and ``labels``, int32; a label is the token itself or -100. Chats that cannot be rendered or
            masked are refused.
        """
        refused: dict[int, BadRow] = {}
        rendered: dict[int, Rendered] = {}
        for number, row in enumerate(rows):
            with _refusing(refused, number, places):
                rendered[number] = self._render(row)
        encoded = self._tokenise([chat.text for chat in rendered.values()])
        offsets = encoded["offset_mapping"] if self.needs_turns else [()] * len(rendered)
        ready = []
        for (number, chat), ids, spans in zip(rendered.items(), encoded["input_ids"], offsets, strict=True):
            with _refusing(refused, number, places):
                ready.append(self._labelled(chat, ids, spans))
        return _flat(ready, [refused[number] for number in sorted(refused)])

    def _render(self, chat: Any) -> Rendered:
        if not isinstance(chat, Mapping):
            raise UnusableChat(f"the row is a {type(chat).__name__}, not a mapping with messages", WRONG_TYPE)
        messages, tools = chat.get("messages"), chat.get("tools")
        if self.needs_turns:
            return self.finder.turns(messages, tools)
        return Rendered(self.finder.text(messages, tools), [])

    def _tokenise(self, texts: list[str]) -> Any:
        if not texts:
            return {"input_ids": [], "offset_mapping": []}
        return self.tokenizer(
            texts,
            add_special_tokens=False,  # the template writes them
            return_attention_mask=False,
            return_offsets_mapping=self.needs_turns,
            verbose=False,  # over-long rows are handled, and counted, after this
        )

    def _labelled(self, chat: Rendered, ids: list[int], offsets: Sequence[Any]) -> tuple[list[int], list[int]]:
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise UnusableChat(
                f"the chat begins with two {self.tokenizer.bos_token} tokens",
                TWO_BOS,
                "let the chat template write it once, and take it out of the messages",
            )
        if self.needs_turns:
            places = self._parted(chat, TokenPlaces(ids, offsets, chat.text, self.special_ids))
            ids, labels = places.ids, self._labels(chat, places)
        else:
            labels = list(ids)
        labels[:1] = [IGNORE_INDEX] * len(labels[:1])
        if all(label == IGNORE_INDEX for label in labels):
            raise UnusableChat(
                "the chat has no token to train on", NOTHING_TO_TRAIN_ON, "remove the row, or look at its messages"
            )
        return ids, labels

    def _labels(self, chat: Rendered, places: TokenPlaces) -> list[int]:
        ids = places.ids
        labels = [IGNORE_INDEX] * len(ids) if self.mask_inputs else list(ids)
        for start, stop in chat.turns:
            first, last = places.within(start, stop)
            labels[first:last] = ids[first:last]
            if self.ignore_empty_think and chat.text.startswith(EMPTY_THINK, start):
                answer = places.first_from(start + len(EMPTY_THINK))
                labels[first:answer] = [IGNORE_INDEX] * (answer - first)
        return labels

    def _parted(self, chat: Rendered, places: TokenPlaces) -> TokenPlaces:
        """The same tokens, or where one reaches across the start of a turn, those of the parts that meet there."""
        cuts = [start for start, stop in chat.turns if start < stop and places.across(start) is not None]
        if not cuts:
            return places
        begins, ends = [0, *cuts], [*cuts, len(chat.text)]
        parts = self._tokenise([chat.text[begin:end] for begin, end in zip(begins, ends, strict=True)])
        ids = list(chain.from_iterable(parts["input_ids"]))
        if self.tokenizer.decode(ids) != self.tokenizer.decode(places.ids):
            token = places.across(cuts[0])
            assert token is not None, "cuts are where a token reaches across"
            raise UnusableChat(
                f"the token {places.written(token)!r} begins before the assistant's text and reaches into it",
                NO_MASK,
                "end the chat template's generation prompt with a special token or a line break",
            )
        offsets = [
            (begin + start, begin + end)
            for begin, part in zip(begins, parts["offset_mapping"], strict=True)
            for start, end in part
        ]
        return TokenPlaces(ids, offsets, chat.text, self.special_ids)


def _without_post_processor(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy whose offsets cover whole tokens.

    A post-processor adds special tokens, which the template writes here, and that of many byte-level tokenizers takes
    the spaces of a token out of its offsets, which would hide where it starts.
    """
    if not tokenizer.is_fast:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


@contextlib.contextmanager
def _refusing(refused: dict[int, BadRow], number: int, places: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except UnusableChat as error:
        refused[number] = BadRow(str(error), category=error.category, where=places[number], remedy=error.remedy or None)


def _flat(rows: list[tuple[list[int], list[int]]], refused: list[BadRow]) -> EncodedRows:
    import numpy as np

    lengths = np.array([len(ids) for ids, _ in rows], np.int32)
    columns = {
        name: np.fromiter(chain.from_iterable(row[column] for row in rows), np.int32, int(lengths.sum()))
        for column, name in enumerate(("input_ids", "labels"))
    }
    return EncodedRows(columns, lengths, refused)
