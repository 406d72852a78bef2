"""The model stage: what a model factory is, and the precisions that a recipe may ask for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from arctic_training._exports import lazy_attribute
from arctic_training.component import Component
from arctic_training.config import ComponentConfig, key

if TYPE_CHECKING:
    import torch

    from arctic_huggingface.model import HFModelFactory as HFModelFactory

Dtype = Literal[
    "bf16",
    "bfloat16",
    "torch.bfloat16",
    "fp16",
    "float16",
    "half",
    "torch.float16",
    "fp32",
    "float32",
    "float",
    "torch.float32",
]
"""Names of precisions; several mean the same."""


class ModelConfig(ComponentConfig):
    kind: ClassVar[str] = "model"

    name_or_path: str = key(doc="Name on the hub, or folder, of the model.")
    dtype: Dtype = key(
        "bf16",
        doc="Precision of the arithmetic: bf16, fp16 or fp32, by any of their usual names. Master weights and "
        "optimizer state are fp32 in every case.",
    )
    save_name: str | None = key(None, doc="Name that exported models carry in their configuration.")
    freeze: list[str] = key(
        factory=list, doc="Patterns over names of parameters that are not trained, such as `model.embed_tokens.*`."
    )
    train_only: list[str] = key(
        factory=list, doc="Patterns over names of parameters, all others of which are not trained."
    )

    def check(self) -> Iterator[tuple[str, str]]:
        if self.freeze and self.train_only:
            yield "train_only", "contradicts freeze: give one of them"

    @property
    def precision(self) -> Literal["bf16", "fp16", "fp32"]:
        """The one name that stands for all spellings of ``dtype``."""
        name = self.dtype.removeprefix("torch.")
        if name in ("bf16", "bfloat16"):
            return "bf16"
        return "fp16" if name in ("fp16", "float16", "half") else "fp32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch has it."""
        import torch

        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]


class ModelFactory(Component):
    """Builds the model of a run, in two steps that can each be overridden."""

    kind = "model"
    config: ModelConfig

    @abstractmethod
    def create_config(self) -> Any:
        """The architecture's configuration, without weights."""

    @abstractmethod
    def create_model(self, config: Any) -> torch.nn.Module:
        """The model.

        Args:
            config: what ``create_config`` gave. The recipe's section is ``self.config``.
        """

    def max_length(self, config: Any) -> int | None:
        """The longest sequence in tokens that the architecture takes, or None when it names no bound."""
        return getattr(config, "max_position_embeddings", None)


def __getattr__(name: str) -> Any:
    return lazy_attribute(__name__, name)
