"""Tokenises texts as they are, batch by batch, for data factories that know what belongs around them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 64
"""Texts that are handed to the tokenizers library together: enough for its threads, few enough for the cache."""


class Ids(NamedTuple):
    """The tokens of a text, where the tokenizer tells no more."""

    ids: list[int]


class InvalidText(NamedTuple):
    """Why a text has no tokens."""

    reason: str


class TextTokeniser:
    """Tokenises texts without adding anything to them.

    Args:
        tokenizer: the tokenizer.
        arguments: of its calls (``tokenizer.tokenize_kwargs`` in a recipe).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.arguments = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        self.arguments |= arguments or {}
        self.backend = _backend(tokenizer) if tokenizer.is_fast and not arguments else None

    def __call__(self, texts: Sequence[str], *, offsets: bool = False) -> list[Any]:
        """What the library gives for each text.

        Args:
            texts: the texts.
            offsets: whether the characters of each token are wanted too; only ``backend`` tells them, at a third more
                time.

        Returns:
            For each text something with ``ids``, or an ``InvalidText``.
        """
        if not texts:
            return []
        try:
            return self._encode(texts, offsets)
        except (TypeError, UnicodeError):
            reasons = [_not_unicode(text) for text in texts]
            if not any(reasons):
                raise
            rest = [text for text, reason in zip(texts, reasons, strict=True) if not reason]
            good = iter(self(rest, offsets=offsets))
            return [reason or next(good) for reason in reasons]

    def _encode(self, texts: Sequence[str], offsets: bool) -> list[Any]:
        if not self.backend:
            return [Ids(ids) for ids in self.tokenizer(list(texts), **self.arguments)["input_ids"]]
        encode = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        batches = (encode(texts[start : start + TEXTS_AT_ONCE], add_special_tokens=False) for start in starts)
        return list(chain.from_iterable(batches))


def _not_unicode(text: str) -> InvalidText | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return InvalidText(f"the text holds {text[error.start]!r}, half of a character")
    return None


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy of the tokenizer's engine whose offsets cover whole tokens.

    A post-processor adds special tokens, and that of many byte-level tokenizers takes the spaces of a token out of its
    offsets, which would hide where it starts.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
    return backend
