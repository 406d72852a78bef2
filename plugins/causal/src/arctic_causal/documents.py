"""Documents to token ids: what begins a text, the text, what ends it.

Rules:

1. A document begins with the tokenizer's BOS token and ends with its EOS token, where it has them, also where the
   tokenizer would not add them by itself: without them nothing tells a model where a document ends.
2. All of it is trained but its first token, which nothing predicts.
3. A text that brings its own BOS token, so that two stand in a row, is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from arctic_huggingface.faults import INVALID_TEXT, MISSING_TEXT, NOTHING_TO_TRAIN_ON, TWO_BOS, WRONG_TYPE
from arctic_huggingface.texts import InvalidText, TextTokeniser
from arctic_training.encoding import EncodedRows
from arctic_training.errors import BadRow
from arctic_training.loss import IGNORE_INDEX
from arctic_training.row_checks import rows_that_double, untrained_rows

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


class DocumentEncoder:
    """Encodes documents with one tokenizer. It may be sent to worker processes.

    Args:
        tokenizer: the tokenizer.
        arguments: of its calls (``tokenizer.tokenize_kwargs`` in a recipe).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})
        self.tokenise = TextTokeniser(tokenizer, self.arguments)
        self.begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(DocumentEncoder, arguments=self.arguments), (self.tokenizer,)

    def __call__(self, rows: Sequence[Any], places: Sequence[str]) -> EncodedRows:
        """Ids and labels of documents.

        Args:
            rows: mappings with ``text``.
            places: where each document comes from, such as ``row 7``, for errors.

        Returns:
            ``input_ids`` and ``labels``, int32; a label is the token itself or -100. Rows that hold no text or cannot
            be trained on are refused.
        """
        refused: dict[int, BadRow] = {}

        def refuse(number: int, reason: str, category: str, remedy: str = "mend the row, or remove it") -> None:
            refused[number] = BadRow(reason, category=category, where=places[number], remedy=remedy)

        texts: dict[int, str] = {}
        for number, row in enumerate(rows):
            text = row.get("text") if isinstance(row, Mapping) else None
            if isinstance(text, str) and text:
                texts[number] = text
            elif text is None or text == "":
                refuse(number, "the row has no text", MISSING_TEXT)
            else:
                refuse(number, f"`text` holds a {type(text).__name__}, not text", WRONG_TYPE)
        made: dict[int, list[int]] = {}
        for number, encoding in zip(texts, self.tokenise(list(texts.values())), strict=True):
            if isinstance(encoding, InvalidText):
                refuse(number, encoding.reason, INVALID_TEXT)
            else:
                made[number] = [*self.begin, *encoding.ids, *self.end]
        columns, lengths = _columns(made.values())
        numbers = list(made)
        for index in untrained_rows(columns["labels"], lengths):
            refuse(numbers[index], "the text is one token, and nothing predicts the first", NOTHING_TO_TRAIN_ON)
        if self.begin and self.begin != self.end:
            bos = self.tokenizer.bos_token
            for index in rows_that_double(self.begin[0], columns["input_ids"], lengths):
                remedy = (
                    f"take {bos} out of the text, which gets one, or read it as text with "
                    "tokenizer.tokenize_kwargs: {split_special_tokens: true}"
                )
                refuse(numbers[index], f"the document holds two {bos} tokens in a row", TWO_BOS, remedy)
        if refused.keys() & made.keys():
            columns, lengths = _columns([ids for number, ids in made.items() if number not in refused])
        return EncodedRows(columns, lengths, [refused[number] for number in sorted(refused)])


def _columns(documents: Collection[list[int]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ids and labels of all documents, one after the other, and the length of each."""
    import numpy as np

    lengths = np.array([len(ids) for ids in documents], np.int32)
    ids = np.fromiter(chain.from_iterable(documents), np.int32, int(lengths.sum()))
    labels = ids.copy()
    labels[(np.cumsum(lengths) - lengths)[lengths > 0]] = IGNORE_INDEX
    return {"input_ids": ids, "labels": labels}, lengths
