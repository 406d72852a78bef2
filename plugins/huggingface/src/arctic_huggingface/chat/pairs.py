"""Preference pairs to rows of two documents, the chosen answer's and the rejected answer's, each with its prompt.

Both documents stand in one row, so that no pair is parted by packing, mixing or ranks. The prompt is what both chats
begin with, and ends where the template lets the assistant speak; only the answers have labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from arctic_huggingface.chat.answers import AnswersDataConfig, AnswersDataFactory
from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_huggingface.faults import EQUAL_ANSWERS, OTHER_PROMPT, WRONG_TYPE, Fault, check_object
from arctic_huggingface.messages import MessageReader
from arctic_huggingface.preferences import PreferenceReader, shared_messages
from arctic_training.config import key
from arctic_training.data import Rows
from arctic_training.encoding import EncodedRows, Encoder
from arctic_training.errors import BadRow, DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.token_tables import columns_of

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("chosen", "rejected")
TOO_LONG = "over-long pair"
Truncation = Literal["keep_start", "keep_end"]


class PairDataConfig(AnswersDataConfig):
    max_length: int | None = key(
        None,
        ge=2,
        doc="Longest prompt with one answer in tokens; the model's max_position_embeddings when not given. A pair is "
        "two of them, and so much a pack may hold.",
    )
    max_prompt_length: int = key(
        4096,
        ge=1,
        doc="Longest prompt in tokens. It is cut to this, and further where the longer answer needs the room within "
        "max_length.",
    )
    dpo_prompt_truncation_mode: Truncation = key("keep_start", doc="Which part of a prompt stays that is cut.")


class PairDataFactory(AnswersDataFactory):
    """Rows with ``chosen`` and ``rejected`` to rows, or packs of rows, that hold pairs of documents."""

    config: PairDataConfig
    default_source = "huggingface_preference"
    number_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the rows with a number for each pair, which the loss finds in ``batch.columns``."""
    least_numbers: ClassVar[Mapping[str, float]] = {}
    """The least number of such a column, where it may not hold every one."""

    def encoder(self) -> Encoder:
        config = self.config
        self.warn_of_plain_arguments()
        return PairEncoder(
            self.tokenizer,
            max_length=self.max_document_length,
            max_prompt_length=config.max_prompt_length,
            truncation=config.dpo_prompt_truncation_mode,
            drop_over_long=config.over_long_policy == "drop",
            number_columns=self.number_columns,
            least_numbers=self.least_numbers,
        )

    def check_shape(self, dataset: Rows) -> None:
        """Refuse a source none of whose first rows has both answers.

        Raises:
            DataError: a column is missing; names those that there are.
        """
        if (columns := columns_of(dataset)) and not set(ANSWERS) <= set(columns):
            raise DataError(
                f"pairs need columns `chosen` and `rejected`; found {', '.join(sorted(columns))}",
                remedy="use the source huggingface_preference, whose column_mapping names the columns that hold them",
            )


class Answer(NamedTuple):
    """A prompt with one answer: tokens, labels, and the number of tokens before the answer."""

    ids: np.ndarray
    labels: np.ndarray
    prompt: int


class PairEncoder:
    """Encodes pairs with one tokenizer. It may be sent to worker processes.

    Args:
        tokenizer: with a chat template.
        max_length: most tokens of a prompt with one answer.
        max_prompt_length: most tokens of a prompt.
        truncation: which part of a longer prompt stays.
        drop_over_long: whether pairs whose answer leaves no room for a prompt are dropped; otherwise they are refused.
        number_columns: columns of the rows with a number, which each token of a pair gets, in float32; minus
            infinity where a row has none.
        least_numbers: what some of them have to be at least.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        max_prompt_length: int = 4096,
        truncation: Truncation = "keep_start",
        drop_over_long: bool = True,
        number_columns: Sequence[str] = (),
        least_numbers: Mapping[str, float] | None = None,
    ) -> None:
        self.chats = ChatEncoder(tokenizer)
        self.read = PreferenceReader(MessageReader())
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.truncation = truncation
        self.drop_over_long = drop_over_long
        self.number_columns = tuple(number_columns)
        self.least_numbers = dict(least_numbers or {})

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """Pairs as rows of two documents.

        Args:
            rows: mappings with ``chosen`` and ``rejected``, and what else ``PreferenceReader`` reads.
            places: where each comes from, for errors.

        Returns:
            ``input_ids``, ``labels`` and ``position_ids``, int32; positions begin anew where the rejected answer's
            prompt does; and the columns of numbers.
        """
        refused: dict[int, BadRow] = {}
        counts: Counter[str] = Counter()
        made: list[Answer] = []
        numbers: list[list[float]] = []
        for number, pair in self._encoded(rows, places, refused):
            try:
                given = [_number(rows[number], name, self.least_numbers.get(name)) for name in self.number_columns]
                if fitted := self._fitted(pair, counts):
                    made += fitted
                    numbers.append(given)
            except Fault as fault:
                refused[number] = fault.at(places[number])
        columns = dict(
            zip(self.number_columns, zip(*numbers, strict=True), strict=True)
            if numbers
            else ((name, ()) for name in self.number_columns)
        )
        return _joined(made, columns, [refused[number] for number in sorted(refused)], counts)

    def _encoded(
        self, rows: Sequence[Any], places: Sequence[str], refused: dict[int, BadRow]
    ) -> Iterator[tuple[int, list[Answer]]]:
        """The number of each row that is a pair, with its two answers."""
        numbers, chats = [], []
        for number, row in enumerate(rows):
            try:
                chats += _chats(self.read(check_object(row)))
                numbers.append(number)
            except Fault as fault:
                refused[number] = fault.at(places[number])
        encoded = self.chats(chats, [str(number) for number in range(len(chats))])
        for error in encoded.refused:
            chat = int(error.where or 0)
            number = numbers[chat // 2]
            reason = f"{error.message} (in {ANSWERS[chat % 2]!r})"
            refused.setdefault(
                number, BadRow(reason, category=error.category, where=places[number], remedy=error.remedy)
            )
        left_out = {int(error.where or 0) for error in encoded.refused}
        answers = _answers(encoded)
        found = [None if chat in left_out else next(answers) for chat in range(len(chats))]
        for position, number in enumerate(numbers):
            pair = [answer for answer in found[2 * position : 2 * position + 2] if answer is not None]
            if len(pair) == len(ANSWERS):
                yield number, pair

    def _fitted(self, pair: list[Answer], counts: Counter[str]) -> list[Answer]:
        """The pair with a prompt that fits; nothing if it is to be dropped."""
        import numpy as np

        chosen, rejected = pair
        prompt = chosen.prompt
        if prompt != rejected.prompt or not np.array_equal(chosen.ids[:prompt], rejected.ids[:prompt]):
            raise Fault("the chat template writes the prompt differently before the two answers", OTHER_PROMPT)
        if np.array_equal(chosen.ids[prompt:], rejected.ids[prompt:]):
            raise Fault("the chat template writes both answers the same", EQUAL_ANSWERS, "remove the row")
        longer = max(len(answer.ids) for answer in pair) - prompt
        room = self.max_length - longer
        if room < 1:
            if self.drop_over_long:
                counts["rows dropped, with an answer that fills max_length"] += 1
                return []
            raise Fault(
                f"an answer has {longer} tokens, which leaves no room for a prompt within the max_length of "
                f"{self.max_length}",
                TOO_LONG,
                "raise data.max_length, or set data.over_long: drop",
            )
        kept = min(prompt, self.max_prompt_length, room)
        if kept < prompt:
            own_limit = kept == self.max_prompt_length
            limit = "max_prompt_length" if own_limit else "what the answers leave of max_length"
            counts[f"prompts cut to {limit}"] += 1
        return [_with_prompt(answer, kept, self.truncation) for answer in pair]


def _chats(pair: dict[str, Any]) -> list[dict[str, Any]]:
    """Both chats of a pair, in which what stands before the answers is not trained."""
    shared = shared_messages(pair["chosen"], pair["rejected"])
    tools = {"tools": pair["tools"]} if "tools" in pair else {}
    prompt = [
        {**message, "train": False} if message["role"] == "assistant" else message
        for message in pair["chosen"][:shared]
    ]
    return [{"messages": [*prompt, *pair[name][shared:]], **tools} for name in ANSWERS]


def _answers(encoded: EncodedRows) -> Iterator[Answer]:
    """The encoded chats one by one."""
    import numpy as np

    end = 0
    for length in encoded.lengths.tolist():
        begin, end = end, end + length
        labels = encoded.columns["labels"][begin:end]
        yield Answer(encoded.columns["input_ids"][begin:end], labels, int(np.argmax(labels != IGNORE_INDEX)))


def _with_prompt(answer: Answer, kept: int, truncation: Truncation) -> Answer:
    """The answer behind so many tokens of its prompt."""
    import numpy as np

    start = 0 if truncation == "keep_start" else answer.prompt - kept
    ids, labels = (
        np.concatenate([values[start : start + kept], values[answer.prompt :]])
        for values in (answer.ids, answer.labels)
    )
    return Answer(ids, labels, kept)


def _number(row: Any, column: str, least: float | None = None) -> float:
    """The number in a column of a row; minus infinity where there is none."""
    if row.get(column) is None:
        return -math.inf
    expected = "a number"
    with suppress(TypeError, ValueError):
        if math.isfinite(number := float(row[column])):
            if least is None or number >= least:
                return number
            expected = f"a number of at least {least:g}"
    raise Fault(f"holds {row[column]!r:.40} in {column!r}, not {expected}", WRONG_TYPE, "correct the row")


def _joined(
    answers: list[Answer], numbers: Mapping[str, Sequence[float]], refused: list[BadRow], counts: Counter[str]
) -> EncodedRows:
    """Rows of two answers each, as flat columns, with the numbers of each row at each of its tokens."""
    import numpy as np

    empty: np.ndarray = np.zeros(0, np.int32)
    lengths = np.array([len(answer.ids) for answer in answers], np.int32).reshape(-1, 2).sum(1)
    columns = {
        "input_ids": np.concatenate([empty, *(answer.ids for answer in answers)]),
        "labels": np.concatenate([empty, *(answer.labels for answer in answers)]),
        "position_ids": np.concatenate([empty, *(np.arange(len(answer.ids), dtype=np.int32) for answer in answers)]),
        **{name: np.repeat(np.array(values, np.float32), lengths) for name, values in numbers.items()},
    }
    return EncodedRows(columns, lengths, refused, dict(counts))
