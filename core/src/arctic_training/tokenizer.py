"""The tokenizer stage: what a tokenizer factory is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig, key

NOT_OF_A_CALL = {
    "add_special_tokens": "beginning and end of a document are added to it once, by the data factory",
    "truncation": "what becomes of long rows is said by data.over_long, which counts them",
    "max_length": "what becomes of long rows is said by data.max_length and data.over_long",
    "padding": "micro-batches are padded by data.pad_to and data.div_length",
    "return_tensors": "rows are lists of ids",
    "return_overflowing_tokens": "long rows are split by data.over_long: split",
}
"""Arguments of tokenizers that would undo what data factories do, and what is there instead."""


class TokenizerConfig(ComponentConfig):
    kind: ClassVar[str] = "tokenizer"

    name_or_path: str | None = key(None, doc="Name or folder of the tokenizer; the model's when not given.")
    tokenize_kwargs: dict[str, Any] = key(
        factory=dict,
        doc="Arguments of the calls that tokenise plain text, such as {split_special_tokens: true}; chats are written "
        "by the chat template, and know none.",
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        for name in sorted(self.tokenize_kwargs.keys() & NOT_OF_A_CALL.keys()):
            if self.tokenize_kwargs[name] not in (None, False):
                yield "tokenize_kwargs", f"{name}: {NOT_OF_A_CALL[name]}"


class TokenizerFactory(Component):
    """Builds the tokenizer of a run."""

    kind = "tokenizer"
    config: TokenizerConfig

    @abstractmethod
    def create_tokenizer(self) -> Any:
        """The tokenizer that data is prepared with and that is saved beside the model."""

    def fingerprint(self, tokenizer: Any) -> str:
        """Text that changes whenever the tokenizer would give other ids; part of the key of prepared data."""
        return repr(tokenizer)

    def fingerprint_parts(self, tokenizer: Any) -> dict[str, str]:
        """The same in parts by name, so that one can see what differs. Whoever overrides ``fingerprint`` alone is asked
        for that alone."""
        return {"fingerprint": self.fingerprint(tokenizer)}
