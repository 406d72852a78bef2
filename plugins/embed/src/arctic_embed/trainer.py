"""Contrastive training of bi-encoders: one model embeds queries and documents, and learns which belong together.

Shapes: T texts, L tokens of the longest, D units of an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from arctic_embed.contrast import contrast, figure_names
from arctic_embed.data import KEYS, EmbedDataFactory
from arctic_embed.model import EmbedModelFactory, pooled
from arctic_huggingface.hub import refusal
from arctic_huggingface.text_pairs import TEXTS
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.config import key
from arctic_training.errors import DataError
from arctic_training.gradient_cache import GradientCache
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer, TrainerConfig
from arctic_training.wording import counted

if TYPE_CHECKING:
    import torch

    from arctic_training.dataloader import MicroBatch
    from arctic_training.loss import LossSum


class EmbedTrainerConfig(TrainerConfig):
    temperature: float = key(0.05, gt=0, doc="What cosine similarities are divided by.")
    symmetric: bool = key(False, doc="Let each positive text tell its query from all others too.")
    mask_equal_texts: bool = key(
        True, doc="Count no text as a negative that is the positive one again, or answers the same query."
    )
    matryoshka_dims: list[int] = key(
        factory=list, ge=1, doc="Numbers of leading units that shall be embeddings by themselves: [384, 128, 64]."
    )
    matryoshka_weights: list[float] = key(factory=list, gt=0, doc="Weight of each of matryoshka_dims; 1 by default.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if len(set(self.matryoshka_dims)) < len(self.matryoshka_dims):
            yield "matryoshka_dims", "names a number twice"
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka_dims):
            yield "matryoshka_weights", f"expected {len(self.matryoshka_dims)} weights, as many as matryoshka_dims"


class EmbedTrainer(Trainer):
    """Trains an encoder so that a query is more like its positive text than all other documents of the step."""

    name = "embed"
    config: EmbedTrainerConfig
    model_factory: EmbedModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: EmbedDataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine
    has_own_loss = True
    loss_units = "queries"
    cache: GradientCache

    def prepare(self) -> None:
        """Set up the losses over all rows of a step.

        Raises:
            RecipeError: the model's embeddings have fewer units than ``matryoshka_dims`` asks for.
        """
        width = self.model_unwrapped.config.hidden_size
        if any(dim > width for dim in self.config.matryoshka_dims):
            message = f"the embeddings of this model have {width} units"
            raise refusal(self.run, "matryoshka_dims")(message, f"name numbers up to {width}")
        self.cache = GradientCache(self, self.embed, self.measure, figure_names(self.config, width))

    def embed(self, batch: MicroBatch) -> torch.Tensor:
        """The embedding of each text, not normalised, in fp32 and of shape (T, D)."""
        mask_TL = batch["attention_mask"]
        hidden_TLD = self.model(input_ids=batch["input_ids"], attention_mask=mask_TL).last_hidden_state
        return pooled(hidden_TLD, mask_TL, getattr(self.config.model, "pooling", "mean"))

    def measure(self, embeddings_TD: torch.Tensor, columns: Mapping[str, torch.Tensor], rows: range) -> torch.Tensor:
        """Loss and figures of some rows against the texts of all.

        Raises:
            DataError: there is but one document, so nothing that a query could be told from.
        """
        numbers, keys = columns[TEXTS], columns[KEYS]
        if len(keys[numbers > 1].unique()) == 1:
            raise DataError(
                f"{counted(int((numbers == 1).sum()), 'row')} of a step or evaluation: one document for all of them",
                remedy="raise micro_batch_size, give rows negatives, drop a last single one, or let their texts differ",
            )
        return contrast(embeddings_TD, numbers, keys, rows, self.config)

    def before_losses(self, batches: Iterable[MicroBatch]) -> None:
        self.cache.fill(batches)

    def loss(self, batch: MicroBatch) -> LossSum:  # type: ignore[override]
        return self.cache.loss(batch)

    def loss_weight(self, batch: MicroBatch) -> float:  # type: ignore[override]
        return float(len(batch.rows))
