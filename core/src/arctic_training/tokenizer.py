"""The tokenizer stage: what a tokenizer factory is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig, key


class TokenizerConfig(ComponentConfig):
    kind: ClassVar[str] = "tokenizer"

    name_or_path: str | None = key(None, doc="Name or folder of the tokenizer; the model's when not given.")


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
