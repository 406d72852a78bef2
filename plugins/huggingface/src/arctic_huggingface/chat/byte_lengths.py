"""Where the tokens of byte-level tokenizers are in a text, from the number of bytes that each stands for.

Such a tokenizer (GPT-2, Llama 3, Qwen, ...) cuts the bytes of a text into tokens and loses none. So tokens start where
those before them end, and the offsets that the tokenizers library would work out for each are not needed: without them
it takes about three quarters of the time.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

# Steps before the bytes are cut that cut text, and perhaps drop some of it, but change none.
_CUTTING_STEPS = {"Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer"}


class ByteLengths:
    """The number of bytes that each token of one tokenizer stands for.

    Args:
        lengths: of each id; 0 for ids that are not used.
        normalizer: what the tokenizer does to a text first, None for nothing.
    """

    def __init__(self, lengths: list[int], normalizer: Any = None) -> None:
        self.lengths = lengths
        self.normalizer = normalizer

    def places(self, text: str, ids: list[int]) -> BytePlaces | None:
        """Where the tokens of a text are; None where they do not stand for all of its bytes, as they are."""
        if self.normalizer is not None and self.normalizer.normalize_str(text) != text:
            return None
        length = len(text) if text.isascii() else len(text.encode())
        ends = list(accumulate(map(self.lengths.__getitem__, ids)))
        return BytePlaces(text, ends, text.isascii()) if ends and ends[-1] == length else None


class BytePlaces:
    """Where the tokens of one text are.

    Args:
        text: the text.
        ends: where each token ends, in bytes.
        plain: whether a character is a byte.
    """

    def __init__(self, text: str, ends: list[int], plain: bool) -> None:
        self.text = text
        self.ends = ends
        self.plain = plain

    def __len__(self) -> int:
        return len(self.ends)

    def first_from(self, character: int) -> int | None:
        """The token that starts at this character; None where none does."""
        token, start = self._token_of(self._byte(character))
        return token if start == self._byte(character) else None

    def around(self, character: int, least: int) -> int | None:
        """The token that this character is in; None where it starts before the character ``least``."""
        token, start = self._token_of(self._byte(character))
        return None if start < self._byte(least) else token

    def _token_of(self, byte: int) -> tuple[int, int]:
        token = bisect_right(self.ends, byte)
        return token, self.ends[token - 1] if token else 0

    def _byte(self, character: int) -> int:
        return character if self.plain else len(self.text[:character].encode())


def byte_lengths_of(tokenizer: PreTrainedTokenizerBase, backend: Any) -> ByteLengths | None:
    """The lengths of a tokenizer's tokens in bytes.

    The sum of the lengths then proves where tokens are: every step may drop text, and none adds or changes any.

    Args:
        tokenizer: a fast tokenizer.
        backend: its engine.

    Returns:
        None where it does not cut bytes, or does something else to the text as well.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    model = backend.model
    if type(model).__name__ != "BPE" or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    steps = _steps(backend.pre_tokenizer)
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if any(step["type"] not in _CUTTING_STEPS for step in steps[:-1]):
        return None
    tokens, alphabet = backend.get_vocab(with_added_tokens=False), set(ByteLevel.alphabet())
    if not alphabet <= tokens.keys():
        return None  # a byte without a token becomes the unknown token, or nothing
    lengths = [0] * (max(*tokens.values(), *tokenizer.added_tokens_decoder) + 1)
    for token, token_id in tokens.items():
        lengths[token_id] = len(token)  # a character of it stands for a byte
    for token_id, added in tokenizer.added_tokens_decoder.items():
        length = len(added.content.encode())
        if alphabet.issuperset(added.content) and lengths[token_id] not in (0, length):
            return None  # the same id for two texts
        lengths[token_id] = length
    return ByteLengths(lengths, backend.normalizer)


def _steps(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    written = json.loads(pre_tokenizer.__getstate__())
    return written["pretokenizers"] if written["type"] == "Sequence" else [written]
