"""Reward models: scores of answers, learnt from pairs of a better and a worse one.

Shapes: B rows, L tokens of a row, D documents of the micro-batch, P pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_reward.data import MARGIN, RewardDataFactory
from arctic_reward.model import RewardModelFactory
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.config import key
from arctic_training.documents import check_pairs, document_ids, inputs_of, pairs_of
from arctic_training.loss import IGNORE_INDEX, LossSum
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    import torch


class RewardTrainerConfig(TrainerConfig):
    margin: float = key(
        0.0, ge=0, doc="By how much the better answer's score shall be higher, of pairs whose row has no `margin`."
    )
    centering_coefficient: float = key(
        0.0, ge=0, doc="Weight of the square of the sum of both scores, which keeps scores around 0; 0.01 is usual."
    )


class RewardTrainer(Trainer):
    """Trains a Bradley-Terry reward model on pairs of a better and a worse answer.

    With the scores r_c and r_r of the better and the worse answer, the loss of an optimizer step is the mean over its
    pairs, taken over the micro-batches of all ranks, of

        - log sigmoid(r_c - r_r - margin)  +  centering_coefficient * (r_c + r_r)^2

    (Ouyang et al., 2022, arXiv:2203.02155; the margin: Touvron et al., 2023, arXiv:2307.09288; centring: Eisenstein et
    al., 2023, arXiv:2312.09244). The score of a text is the one at its last token.
    """

    name = "reward"
    config: RewardTrainerConfig
    model_factory: RewardModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: RewardDataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine
    has_own_loss = True
    loss_units = "pairs"

    def loss_weight(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The number of pairs."""
        return check_pairs(batch)

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum:
        import torch
        import torch.nn.functional as F

        documents_BL = document_ids(batch)
        score_D = self.scores(batch, documents_BL)
        chosen_P, rejected_P = pairs_of(documents_BL)
        better_P, worse_P = score_D[chosen_P], score_D[rejected_P]
        margin_P = self._margins(batch, documents_BL)[chosen_P]
        used_P = _is_trained(batch, documents_BL)[chosen_P]
        loss_P = -F.logsigmoid(better_P - worse_P - margin_P)
        loss_P = loss_P + self.config.centering_coefficient * (better_P + worse_P).square()
        number = used_P.sum()

        def total(values_P: torch.Tensor) -> torch.Tensor:
            return torch.where(used_P, values_P, 0.0).sum()

        with torch.no_grad():
            figures = {
                "rewards/chosen": better_P,
                "rewards/rejected": worse_P,
                "rewards/margin": better_P - worse_P,
                "rewards/accuracy": (better_P > worse_P).float(),
            }
            sums = {name: (total(values_P), number) for name, values_P in figures.items()}
        return LossSum(total(loss_P), number).with_figures(sums)

    def scores(self, batch: dict[str, torch.Tensor], documents_BL: torch.Tensor) -> torch.Tensor:
        """The score of each document, at its last token, in fp32 of shape (D,).

        As in transformers, that is the last one that is not the token of padding.
        """
        score_BL = self.model(**inputs_of(batch), use_cache=False).logits[..., 0]
        score_BL = score_BL if score_BL.dtype.itemsize > 4 else score_BL.float()
        pad_id = self.model_unwrapped.config.pad_token_id
        return score_BL.flatten()[last_tokens(batch["input_ids"] != pad_id, documents_BL)]

    def _margins(self, batch: dict[str, torch.Tensor], documents_BL: torch.Tensor) -> torch.Tensor:
        """The margin of the pair that each document is of."""
        import torch

        given_BL = getattr(batch, "columns", {}).get(MARGIN)
        if given_BL is None:
            return torch.full((int(documents_BL[-1, -1]) + 1,), self.config.margin, device=documents_BL.device)
        given_D = given_BL.flatten()[last_tokens(torch.ones_like(documents_BL, dtype=torch.bool), documents_BL)]
        return torch.where(given_D.isinf(), self.config.margin, given_D)


def last_tokens(counts_BL: torch.Tensor, documents_BL: torch.Tensor) -> torch.Tensor:
    """Where the last token that counts of each document stands, in the flattened micro-batch; int64 of shape (D,).

    Of a document in which none counts, such as padding, it is the first of the micro-batch.
    """
    import torch

    places = torch.arange(documents_BL.numel(), device=documents_BL.device)
    places = torch.where(counts_BL.flatten(), places, 0)
    lasts = places.new_zeros(int(documents_BL[-1, -1]) + 1)
    return lasts.scatter_reduce(0, documents_BL.flatten(), places, "amax")


def _is_trained(batch: dict[str, torch.Tensor], documents_BL: torch.Tensor) -> torch.Tensor:
    """Whether anything of each document has a label."""
    from arctic_training.documents import sums_by_document

    return sums_by_document((batch["labels"] != IGNORE_INDEX).long(), documents_BL) > 0
