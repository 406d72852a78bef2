"""Kahneman-Tversky optimisation: learning from single answers that are labelled good or bad.

Shapes: B rows, L tokens of a row, V words, D documents of the micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from arctic_huggingface.chat.labelled import DESIRABLE, KIND, MISMATCHED, MISMATCHED_PROMPT, UNDESIRABLE
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.reference import disable_dropout, make_reference
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_kto.data import KTODataFactory, unlabelled
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.config import key
from arctic_training.distributed import sum_over_ranks
from arctic_training.documents import document_ids, document_log_probabilities, only_tokens, trained_of_documents
from arctic_training.loss import IGNORE_INDEX, LossSum
from arctic_training.model import ModelConfig
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    import torch

    from arctic_huggingface.reference import Reference
    from arctic_training.dataloader import MicroBatch


class KTOTrainerConfig(TrainerConfig):
    ref_model: ModelConfig | None = key(
        None,
        doc="The model that rewards are measured against, a section like `model`: the one that training starts from. "
        "Where an adapter is trained it may be left out, and is the model with its adapter off.",
    )
    beta: float = key(0.1, gt=0, doc="Reward of a nat that an answer became likelier than in the reference model.")
    desirable_weight: float = key(1.0, gt=0, doc="Weight of the loss of desirable answers.")
    undesirable_weight: float = key(
        1.0,
        gt=0,
        doc="Weight of the loss of undesirable answers. The paper keeps desirable_weight times their number between 1 "
        "and 4/3 of undesirable_weight times theirs.",
    )

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if self.ref_model is None and not getattr(self.model, "peft_config", None):
            message = (
                "there is no reference: name the model that training starts from; there is no adapter to switch off"
            )
            yield "ref_model", message


class Answers(NamedTuple):
    """Of each document: log p of its answer by the model, how much that is above the reference, its kind, and whether
    anything of it counts; the figures in float64, in nats."""

    log_p_D: torch.Tensor
    ratio_D: torch.Tensor
    kind_D: torch.Tensor
    counts_D: torch.Tensor


class KTOTrainer(Trainer):
    """Trains a causal language model on labelled answers (Ethayarajh et al., 2024, arXiv:2402.01306).

    With r = log p(y | x) - log p_ref(y | x) of an answer y to x, the loss of an optimizer step is the mean over its
    answers, taken over the micro-batches of all ranks, of

        desirable_weight   * (1 - sigmoid(beta * (r - z0)))   where y is desirable,
        undesirable_weight * (1 - sigmoid(beta * (z0 - r)))   where it is not,

    with z0 = max(0, mean of r over the answers of other prompts), also over the whole step and without a gradient; in
    evaluation over the whole set. So neither depends on the split. Dropout is off in both models.
    """

    name = "kto"
    config: KTOTrainerConfig
    model_factory: HFModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: KTODataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine
    has_own_loss = True
    loss_units = "answers"

    reference: Reference
    baseline: float = 0.0
    """z0 of the step or the evaluation set, in nats."""
    num_desirable: float = 0.0
    num_undesirable: float = 0.0

    def prepare(self) -> None:
        disable_dropout(self)
        self.reference = make_reference(self)

    def before_losses(self, batches: Iterable[MicroBatch]) -> None:
        """Find the baseline, and how many answers of each kind there are."""
        import torch

        sums = torch.zeros(4, dtype=torch.float64)
        for batch in batches:
            kinds_D, counts_D = _of_documents(_kinds_of_tokens(batch), batch), trained_of_documents(batch) > 0
            with torch.no_grad():
                other = self.answers(batch.to(self.device), mismatched=True)
            if batch.rows:
                ratios = other.ratio_D[other.counts_D].double().cpu()
                own = [((kinds_D == kind) & counts_D).sum().double() for kind in (DESIRABLE, UNDESIRABLE)]
                sums += torch.stack([ratios.sum(), torch.tensor(float(len(ratios)), dtype=torch.float64), *own])
        total, number, self.num_desirable, self.num_undesirable = sum_over_ranks(sums, self.device).tolist()
        self.baseline = max(0.0, total / number) if number else 0.0

    def loss_weight(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The number of answers."""
        return (trained_of_documents(batch) > 0).sum()

    def loss(self, batch: dict[str, torch.Tensor]) -> LossSum:
        import torch

        answers = self.answers(batch, mismatched=False)
        counts_D, desirable_D = answers.counts_D, answers.kind_D == DESIRABLE
        sign_D = torch.where(desirable_D, 1.0, -1.0)
        weight_D = torch.where(desirable_D, self.config.desirable_weight, self.config.undesirable_weight)
        reward_D = self.config.beta * answers.ratio_D
        above_D = sign_D * (reward_D - self.config.beta * self.baseline)
        loss_D = weight_D * torch.sigmoid(-above_D)  # 1 - sigmoid(x), which would round to 0
        total = LossSum(torch.where(counts_D, loss_D, 0.0).sum(), counts_D.sum())
        return total.with_figures(self._figures(answers, reward_D.detach(), above_D.detach()))

    def _figures(
        self, answers: Answers, reward_D: torch.Tensor, above_D: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor | float, torch.Tensor | float]]:
        counts_D = answers.counts_D
        number = counts_D.sum()
        figures: dict[str, tuple[torch.Tensor | float, torch.Tensor | float]] = {
            "rewards/accuracy": (((above_D > 0) & counts_D).sum(), number),
            "kl": (self.baseline * number, number),
        }
        margin: torch.Tensor | float = 0.0
        both = self.num_desirable > 0 and self.num_undesirable > 0
        for name, kind, sign, total in (
            ("desirable", DESIRABLE, 1, self.num_desirable),
            ("undesirable", UNDESIRABLE, -1, self.num_undesirable),
        ):
            own_D = counts_D & (answers.kind_D == kind)
            reward = reward_D[own_D].sum()
            figures[f"rewards/{name}"] = (reward, own_D.sum())
            figures[f"log_probabilities/{name}"] = (answers.log_p_D[own_D].detach().sum(), own_D.sum())
            if both:  # a difference of two means, as the mean over all answers that the loop makes of a sum
                margin = margin + sign * reward * (self.num_desirable + self.num_undesirable) / total
        return figures | {"rewards/margin": (margin, number if both else 0.0)}

    def answers(self, batch: dict[str, torch.Tensor], *, mismatched: bool) -> Answers:
        """What both models say of the answers of a micro-batch, or of those of other prompts.

        Args:
            batch: a micro-batch with the column of kinds.
            mismatched: whether the answers of other prompts are asked for.
        """
        import torch

        kinds_BL = _kinds_of_tokens(batch)
        wanted_BL = kinds_BL >= MISMATCHED_PROMPT if mismatched else (kinds_BL > 0) & (kinds_BL < MISMATCHED_PROMPT)
        labels_BL = batch["labels"]
        if mismatched:
            labels_BL = torch.where(kinds_BL == MISMATCHED, batch["input_ids"], IGNORE_INDEX)
        tokens = only_tokens({**batch, "labels": labels_BL, KIND: kinds_BL}, wanted_BL)
        kinds_BL = tokens.pop(KIND)
        log_p_D = document_log_probabilities(self.model, tokens)
        ratio_D = log_p_D - self.reference(tokens)
        return Answers(log_p_D, ratio_D, _of_documents(kinds_BL, tokens), trained_of_documents(tokens) > 0)


def _of_documents(values_BL: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The value at the first token of each document, of shape (D,)."""
    documents = document_ids(batch).flatten()
    return values_BL.flatten()[documents.diff(prepend=documents.new_full((1,), -1)) > 0]


def _kinds_of_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    kinds_BL = getattr(batch, "columns", {}).get(KIND)
    if kinds_BL is None:
        raise unlabelled()
    return kinds_BL
