"""Labelled answers to rows of two documents: the answer behind its prompt, and behind the same prompt an answer of
another row, which the baseline of the loss is estimated on.

Both stand in one row, so that packing, mixing and ranks do not part them. What each token is stands in a column of its
own, since a mismatched answer is measured and never trained: only the answer that is labelled has labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_huggingface.chat.encoder import ChatEncoder
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow
from arctic_training.loss import IGNORE_INDEX
from arctic_training.wording import found

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

KIND = "kind"
"""The column; 0 is padding."""
DESIRABLE, UNDESIRABLE, MISMATCHED_PROMPT, MISMATCHED = 1, 2, 3, 4
WRONG_LABEL = "wrong label"
TOO_LONG = "over-long answer"
CUT = "mismatched answers cut to max_length"
WITHOUT = "rows without a mismatched answer, since none near them has another prompt"


class Example(NamedTuple):
    """A prompt with an answer: tokens, labels, the number of tokens before the answer, and whether it is a good one."""

    ids: np.ndarray
    labels: np.ndarray
    prompt: int
    desirable: bool


class LabelledEncoder:
    """Encodes labelled answers with one tokenizer. It may be sent to worker processes.

    The mismatched answer of a row is that of the next row behind it that has another prompt, in the order of the rows
    that are encoded together (1,000, or those of one source in a block of a stream), from whose end it goes on at the
    beginning. So it is the same for every number of processes. A row that finds none, such as one that is encoded
    alone, has no second document and does not count for the baseline.

    Args:
        tokenizer: with a chat template.
        max_length: most tokens of a prompt with one answer.
        drop_over_long: whether longer ones are dropped; otherwise they are refused.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, drop_over_long: bool = True) -> None:
        self.chats = ChatEncoder(tokenizer, train_turns="last")
        self.max_length = max_length
        self.drop_over_long = drop_over_long

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """Labelled answers as rows of one or two documents.

        Args:
            rows: mappings with ``messages``, which end with the answer, ``label``, and perhaps ``tools``.
            places: where each comes from, for errors.

        Returns:
            ``input_ids``, ``labels``, ``position_ids`` and the column of kinds; positions begin anew where the prompt
            of the mismatched answer does.
        """
        refused: dict[int, BadRow] = {}
        labelled = []
        for number, row in enumerate(rows):
            if isinstance(label := row.get("label") if isinstance(row, Mapping) else None, bool):
                labelled.append(number)
            else:
                message = f"holds {found(label)} as label, not true or false"
                refused[number] = BadRow(
                    message,
                    category=WRONG_LABEL,
                    where=places[number],
                    remedy="use the source huggingface_labelled, which reads labels of other kinds",
                )
        encoded = self.chats([rows[number] for number in labelled], [str(number) for number in labelled])
        for error in encoded.refused:
            number = int(error.where or 0)
            refused[number] = BadRow(error.message, category=error.category, where=places[number], remedy=error.remedy)
        used = [number for number in labelled if number not in refused]
        counts: Counter[str] = Counter()
        examples = []
        for number, example in zip(used, _examples(encoded, [rows[number]["label"] for number in used]), strict=True):
            if len(example.ids) <= self.max_length:
                examples.append(example)
            elif self.drop_over_long:
                counts["rows dropped, longer than max_length"] += 1
            else:
                refused[number] = BadRow(
                    f"prompt and answer have {len(example.ids)} tokens, more than the max_length of {self.max_length}",
                    category=TOO_LONG,
                    where=places[number],
                    remedy="raise data.max_length, or set data.over_long: drop",
                )
        return self._rows(examples, [refused[number] for number in sorted(refused)], counts)

    def _rows(self, examples: list[Example], refused: list[BadRow], counts: Counter[str]) -> EncodedRows:
        import numpy as np

        documents: list[dict[str, np.ndarray]] = []
        lengths = []
        for example, other in zip(examples, _mismatched(examples), strict=True):
            made = [_own(example)]
            if other is None:
                counts[WITHOUT] += 1
            else:
                room = self.max_length - example.prompt
                counts[CUT] += len(other.ids) - other.prompt > room
                made.append(_with_other_answer(example, other, room))
            documents += made
            lengths.append(sum(len(document["input_ids"]) for document in made))
        empty: np.ndarray = np.zeros(0, np.int32)
        columns = {
            name: np.concatenate([empty, *(document[name] for document in documents)], dtype=kind)
            for name, kind in (("input_ids", "i4"), ("labels", "i4"), ("position_ids", "i4"), (KIND, "i1"))
        }
        return EncodedRows(columns, np.array(lengths, np.int32), refused, {k: n for k, n in counts.items() if n})


def _examples(encoded: EncodedRows, desirable: list[bool]) -> list[Example]:
    import numpy as np

    examples, end = [], 0
    for length, good in zip(encoded.lengths.tolist(), desirable, strict=True):
        begin, end = end, end + length
        labels = encoded.columns["labels"][begin:end]
        prompt = int(np.argmax(labels != IGNORE_INDEX))
        examples.append(Example(encoded.columns["input_ids"][begin:end], labels, prompt, good))
    return examples


def _mismatched(examples: list[Example]) -> list[Example | None]:
    """For each example the next one with another prompt; None where there is none."""
    prompts = [example.ids[: example.prompt].tobytes() for example in examples]
    number = len(examples)
    found: list[Example | None] = []
    for position in range(number):
        others = ((position + step) % number for step in range(1, number))
        other = next((place for place in others if prompts[place] != prompts[position]), None)
        found.append(None if other is None else examples[other])
    return found


def _own(example: Example) -> dict[str, np.ndarray]:
    import numpy as np

    length = len(example.ids)
    kind = DESIRABLE if example.desirable else UNDESIRABLE
    return {
        "input_ids": example.ids,
        "labels": example.labels,
        "position_ids": np.arange(length),
        KIND: np.full(length, kind),
    }


def _with_other_answer(example: Example, other: Example, room: int) -> dict[str, np.ndarray]:
    """The prompt of one example with the answer of another, as much of it as there is room for."""
    import numpy as np

    answer = other.ids[other.prompt : other.prompt + room]
    ids = np.concatenate([example.ids[: example.prompt], answer])
    kinds = np.full(len(ids), MISMATCHED)
    kinds[: example.prompt] = MISMATCHED_PROMPT
    trained = other.labels[other.prompt : other.prompt + room] != IGNORE_INDEX
    kinds[example.prompt :][~trained] = MISMATCHED_PROMPT  # what the template writes behind the answer
    return {
        "input_ids": ids,
        "labels": np.full(len(ids), IGNORE_INDEX),
        "position_ids": np.arange(len(ids)),
        KIND: kinds,
    }
