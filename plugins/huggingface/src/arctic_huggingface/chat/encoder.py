"""Chats to token ids and labels: what the tokenizer's chat template writes, and which of it is trained.

The trained tokens of each assistant turn follow from the structure of the template and never from looking for the
answer's text, which a prompt may quote, a template may strip, and a chat may hold twice. A chat for which they cannot
be established this way is refused.

Rules:

1. Which characters the assistant said: ``turns.py``, which also checks that they hold what the message says.
2. The text is tokenised as a whole, and a token belongs to the turn in which it starts. Where a token would begin
   before a turn and reach into it (a line break of the prompt and one of the answer), the text is tokenised in two
   parts that meet there, as they do when the model answers the prompt; if the parts then read differently, the chat is
   refused. So it is where a turn without end-of-turn token ends.
3. A turn is trained through its end-of-turn token: the last special token after what the assistant said, when nothing
   but white space follows it there. That white space is not trained. Without such a token the turn is trained to its
   end.
4. The first token of a chat has no label, since nothing predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from arctic_huggingface.chat.messages import Chat, checked_chat
from arctic_huggingface.chat.refusals import UnusableChat
from arctic_huggingface.chat.said import check_whole, check_written
from arctic_huggingface.chat.think import empty_reasoning_end, reasoning_end
from arctic_huggingface.chat.tokenise import Text, Tokeniser
from arctic_huggingface.chat.turns import Turn, TurnFinder
from arctic_huggingface.faults import NOTHING_TO_TRAIN_ON, TWO_BOS
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow, DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.row_checks import rows_that_double, untrained_rows

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

TrainTurns = Literal["all", "last", "one_row_per_turn"]


class Row(NamedTuple):
    """Tokens of one row, the chat it was made of, and spans of tokens: those that get labels, or, where everything is
    trained, those that do not."""

    chat: int
    ids: list[int]
    spans: list[tuple[int, int]]


class ChatEncoder:
    """Encodes chats with one tokenizer. It may be sent to worker processes.

    Args:
        tokenizer: with a chat template.
        mask_inputs: train only what the assistant said; otherwise everything but the first token.
        ignore_empty_think: leave out an empty reasoning block at the start of an assistant turn.
        train_turns: ``all`` assistant turns, the ``last`` of each chat, or each in a row of its own, which ends with it
            (``one_row_per_turn``). None is ``all`` where nobody chose.
        mask_reasoning: leave out the reasoning block at the start of an assistant turn, whatever it holds.

    Raises:
        DataError: the tokenizer has no chat template, or cannot tell which text a token stands for; or the options
            contradict each other.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mask_inputs: bool = True,
        ignore_empty_think: bool = False,
        train_turns: TrainTurns | None = None,
        mask_reasoning: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.mask_inputs = mask_inputs
        self.ignore_empty_think = ignore_empty_think
        self.train_turns = train_turns or "all"
        self.mask_reasoning = mask_reasoning
        if not mask_inputs and self.train_turns != "all":
            raise DataError(
                f"data.train_turns: {train_turns} trains single answers and data.mask_inputs: false all of a chat",
                remedy="leave one of them out",
            )
        self.tokenise = Tokeniser(tokenizer)
        self.needs_turns = mask_inputs or ignore_empty_think or mask_reasoning
        if self.needs_turns:
            self.tokenise.require_offsets()
        self.finder = TurnFinder(tokenizer, _template(tokenizer), self.tokenise.specials)
        for_tools = _template(tokenizer, tools=[])  # some tokenizers have a template of its own for them
        self.finder_with_tools = (
            self.finder
            if for_tools == self.finder.template.source
            else TurnFinder(tokenizer, for_tools, self.tokenise.specials)
        )

    def __reduce__(self) -> tuple[Any, ...]:  # compiled templates cannot be sent
        options = {
            name: getattr(self, name) for name in ("mask_inputs", "ignore_empty_think", "train_turns", "mask_reasoning")
        }
        return partial(ChatEncoder, **options), (self.tokenizer,)

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
        refused: dict[int, UnusableChat] = {}
        written: list[tuple[int, Chat, Text]] = []
        for number, row in enumerate(rows):
            try:
                chat = checked_chat(row)
                written += [(number, chat, text) for text in self._texts(chat)]
            except UnusableChat as reason:
                refused[number] = reason
        made = self._rows(written, refused)
        arrays = self._arrays(made)
        if self._refuse_by_tokens(made, *arrays, refused):
            arrays = self._arrays([row for row in made if row.chat not in refused])
        ids, labels, lengths = arrays
        bad_rows = [
            BadRow(str(reason), category=reason.category, where=places[number], remedy=reason.remedy or None)
            for number, reason in sorted(refused.items())
        ]
        return EncodedRows({"input_ids": ids, "labels": labels}, lengths, bad_rows)

    def _texts(self, chat: Chat) -> list[Text]:
        """The texts of the rows that a chat makes, with their turns."""
        finder = self.finder if chat.tools is None else self.finder_with_tools
        if not self.mask_inputs:
            return [self._whole_text(finder, chat)]
        trained = [number for number in chat.answers if number not in chat.untrained]
        if self.train_turns == "last":
            trained = [number for number in trained if number == chat.answers[-1]]
        if not trained:
            raise UnusableChat("all that would be trained has train: false", NOTHING_TO_TRAIN_ON, "remove the row")
        if self.train_turns == "one_row_per_turn":
            return [self._text(finder, chat.until(number), [number]) for number in trained]
        return [self._text(finder, chat, trained)]

    def _whole_text(self, finder: TurnFinder, chat: Chat) -> Text:
        if self.needs_turns or chat.untrained:
            self.tokenise.require_offsets()
            return self._text(finder, chat, chat.answers)
        text = finder.text(chat)
        check_whole(chat.messages, chat.answers, text)
        return Text(text)

    def _text(self, finder: TurnFinder, chat: Chat, numbers: Sequence[int]) -> Text:
        text = finder.text(chat)
        turns = finder.turns(chat, text, numbers)
        check_written(chat.messages, text, {turn.number: (turn.start, turn.stop) for turn in turns})
        return Text(text, turns, [self._left_out(chat, text, turn) for turn in turns])

    def _left_out(self, chat: Chat, text: str, turn: Turn) -> tuple[int, int]:
        if self.mask_reasoning:
            return reasoning_end(turn.number, chat.messages[turn.number], text, turn.start, turn.stop)
        if self.ignore_empty_think:
            return empty_reasoning_end(text, turn.start, turn.stop)
        return turn.start, turn.start

    def _rows(self, written: list[tuple[int, Chat, Text]], refused: dict[int, UnusableChat]) -> list[Row]:
        rows = []
        results = self.tokenise([text for _, _, text in written])
        for (number, chat, text), result in zip(written, results, strict=True):
            if isinstance(result, UnusableChat):
                refused[number] = result
                continue
            spans = []
            for turn, (first, answer, last) in zip(text.turns, result.turns, strict=True):
                if self.mask_inputs:
                    spans.append((answer, last))
                else:
                    spans.append((first, last if turn.number in chat.untrained else answer))
            rows.append(Row(number, result.ids, spans))
        return [row for row in rows if row.chat not in refused] if refused else rows

    def _arrays(self, rows: list[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and labels of all rows, one after the other, and the length of each."""
        import numpy as np

        lengths = np.array([len(row.ids) for row in rows], np.int32)
        ids = np.fromiter(chain.from_iterable([row.ids for row in rows]), np.int32, int(lengths.sum()))
        begins = (np.cumsum(lengths) - lengths).tolist()
        spans = [
            (begin + first, begin + last) for begin, row in zip(begins, rows, strict=True) for first, last in row.spans
        ]
        firsts, lasts = np.array(spans, np.int64).reshape(-1, 2).T
        # Spans do not overlap: so many of them have started before each token and not ended.
        within: np.ndarray = np.zeros(len(ids) + 1, np.int8)
        np.add.at(within, firsts, 1)
        np.subtract.at(within, lasts, 1)
        inside = np.cumsum(within[:-1], dtype=np.int8).view(bool)
        labels = np.where(inside == self.mask_inputs, ids, np.int32(IGNORE_INDEX))
        labels[[begin for begin, row in zip(begins, rows, strict=True) if row.ids]] = IGNORE_INDEX
        return ids, labels, lengths

    def _refuse_by_tokens(
        self,
        rows: list[Row],
        ids: np.ndarray,
        labels: np.ndarray,
        lengths: np.ndarray,
        refused: dict[int, UnusableChat],
    ) -> bool:
        """Refuse rows without a trained token or with two beginnings; whether there were any."""
        for number in untrained_rows(labels, lengths):
            refused[rows[number].chat] = UnusableChat(
                "the chat has no token to train on", NOTHING_TO_TRAIN_ON, "remove the row, or look at its messages"
            )
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is not None and bos != eos:
            for number in rows_that_double(bos, ids, lengths):
                refused[rows[number].chat] = UnusableChat(
                    f"the chat holds two {self.tokenizer.bos_token} tokens in a row",
                    TWO_BOS,
                    "let the chat template write it once, and take it out of the messages",
                )
        return any(row.chat in refused for row in rows)


def _template(tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    try:
        return tokenizer.get_chat_template(**options)
    except ValueError as error:
        raise DataError(
            "the tokenizer has no chat template, so chats cannot be written out for it",
            remedy="set tokenizer.chat_template in the recipe to a template or to the path of one",
        ) from error
