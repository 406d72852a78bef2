"""Learning from preferences: direct preference optimisation and its relatives, one loss or several."""

from __future__ import annotations

import math
from itertools import repeat
from typing import TYPE_CHECKING, Any

from arctic_dpo.config import DPOTrainerConfig
from arctic_dpo.data import DPODataFactory
from arctic_dpo.losses import LOSSES
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.documents import Pairs, check_pairs, document_log_probabilities, trained_of_documents
from arctic_training.loss import LossSum
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer

if TYPE_CHECKING:
    import torch

    from arctic_huggingface.reference import Reference
    from arctic_training.dataloader import Batch


class DPOTrainer(Trainer):
    """Trains a causal language model on pairs of a better and a worse answer.

    The loss of an optimizer step is the weighted sum of the losses that the recipe names, whose formulas ``losses.py``
    has, over the pairs of all ranks and micro-batches, divided by their number.
    """

    name = "dpo"
    config: DPOTrainerConfig
    model_factory: HFModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: DPODataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine
    has_own_loss = True
    loss_units = "pairs"
    reference: Reference | None = None
    """What tells the reference's log-probabilities; None where no loss asks for them."""
    rewards: tuple[float, float] = (0.0, 0.0)
    """Sum and number of the rewards of all answers of earlier steps, for losses that are told their mean."""

    def prepare(self) -> None:
        from arctic_huggingface.reference import disable_dropout, make_reference

        if self.config.disable_dropout:
            disable_dropout(self)
        if self.config.needs_reference:
            self.reference = make_reference(self)

    def step(self, batch: Batch) -> None:
        super().step(batch)
        if "bco_pair" in self.config.loss_types:
            sums = self.figures.over_ranks(self.device)
            (chosen, number), (rejected, _) = sums["rewards/chosen"], sums["rewards/rejected"]
            if math.isfinite(chosen + rejected):  # or the step was skipped
                self.rewards = (self.rewards[0] + chosen + rejected, self.rewards[1] + 2 * number)

    def loss_weight(self, batch: dict[str, torch.Tensor]) -> float:
        """The pairs of a micro-batch."""
        return float(check_pairs(batch))

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum:
        import torch

        tokens = Pairs.of(trained_of_documents(batch), batch)
        policy = Pairs.of(document_log_probabilities(self.model, batch), batch)
        ratios = policy if self.reference is None else policy.minus(Pairs.of(self.reference(batch), batch))
        used = tokens.first > 0
        number = used.sum()
        total, figures = torch.zeros((), dtype=torch.float64, device=number.device), {}
        for name, weight in zip(self.config.loss_types, self.config.loss_weights or repeat(1.0), strict=False):
            loss = LOSSES[name]
            told = ratios if loss.needs_reference else policy
            told = told.over(tokens) if loss.per_token or self.config.length_normalization else told
            term = torch.where(used, loss.function(*told, **self._keys(name, policy, tokens)), 0.0).sum()
            total = total + weight * term
            figures[f"losses/{name}"] = (term.detach(), number)
        values = self._measured(policy, ratios.over(tokens) if self.config.rewards_are_per_token else ratios)
        figures |= {name: (value.detach()[used].sum(), number) for name, value in values.items()}
        return LossSum(total.float(), number).with_figures(figures)

    def _keys(self, name: str, policy: Pairs, tokens: Pairs) -> dict[str, Any]:
        """What a loss takes besides what it is told of the answers."""
        total, number = self.rewards
        found = {"chosen_mean": policy.over(tokens).first, "mean_reward": total / number if number else 0.0}
        return {key: found[key] if key in found else getattr(self.config, key) for key in LOSSES[name].takes}

    def _measured(self, policy: Pairs, scores: Pairs) -> dict[str, torch.Tensor]:
        """The figures of each pair."""
        chosen, rejected = self.config.beta * scores.first, self.config.beta * scores.second
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margin": chosen - rejected,
            "rewards/accuracy": (chosen > rejected).double(),
            "log_probabilities/chosen": policy.first,
            "log_probabilities/rejected": policy.second,
        }
