"""Distillation: a student learns to predict what its teacher predicts, and to think as it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arctic_distill.data import DistillDataFactory
from arctic_distill.divergence import Divergence, coarsened, divergences, tempered
from arctic_distill.top_k import stored_of
from arctic_huggingface.companions import check_layer_pairs, fitting_architecture
from arctic_huggingface.model import HFModelFactory
from arctic_huggingface.tokenizer import HFTokenizerFactory
from arctic_training.checkpoint import CheckpointEngine
from arctic_training.chunks import in_chunks
from arctic_training.config import key
from arctic_training.documents import inputs_of
from arctic_training.loss import IGNORE_INDEX, LossSum
from arctic_training.model import ModelConfig
from arctic_training.optimizer import OptimizerFactory
from arctic_training.scheduler import SchedulerFactory
from arctic_training.trainer import Trainer, TrainerConfig

if TYPE_CHECKING:
    import torch

    from arctic_training.dataloader import MicroBatch


class DistillTrainerConfig(TrainerConfig):
    teacher: ModelConfig = key(doc="The teacher, with the keys of `model`; it is only asked, and has no dropout.")
    divergence: Divergence = key(
        "forward_kl",
        doc="How far the student's prediction Q is from the teacher's P: forward_kl is KL(P || Q), reverse_kl is "
        "KL(Q || P), jensen_shannon the generalised Jensen-Shannon divergence.",
    )
    jensen_shannon_weight: float = key(
        0.5,
        gt=0,
        lt=1,
        doc="Weight of the teacher in jensen_shannon: towards 0 it is forward_kl, towards 1 reverse_kl.",
    )
    temperature: float = key(
        1.0,
        gt=0,
        doc="Both predictions are softened by it, and the divergence is multiplied by its square, so that gradients "
        "stay as large.",
    )
    distillation_weight: float = key(1.0, ge=0, doc="Weight of the divergence in the loss.")
    sft_weight: float = key(0.0, ge=0, doc="Weight of the cross entropy on the labels in the loss.")
    hidden_layers: list[tuple[int, int]] = key(
        factory=list,
        doc="Layers of the student, each with the one of the teacher whose hidden states it shall have: [[2, 4]]. 0 is "
        "the embeddings, n the output of the n-th layer; of the last layer after the final norm.",
    )
    hidden_weight: float = key(1.0, gt=0, doc="Weight of the squared distance of hidden states in the loss.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if "jensen_shannon_weight" in self.given and self.divergence != "jensen_shannon":
            yield "jensen_shannon_weight", f"is of no use to {self.divergence}: set divergence: jensen_shannon"
        if "hidden_weight" in self.given and not self.hidden_layers:
            yield "hidden_weight", "weighs nothing: give hidden_layers"
        if any(layer < 0 for pair in self.hidden_layers for layer in pair):
            yield "hidden_layers", "layers are counted from 0, the embeddings"
        if not self.distillation_weight and not self.hidden_layers:
            yield "distillation_weight", "is 0, so that nothing is learnt from the teacher: use the trainer sft"
        for name in ("divergence", "temperature", "jensen_shannon_weight"):
            if not self.distillation_weight and name in self.given:
                yield name, "is of no use with distillation_weight: 0"
        if self.top_k and self.hidden_layers:
            yield "hidden_layers", "needs the teacher's hidden states, and data.teacher_top_k stores predictions alone"
        if self.loss.type not in ("", "cross_entropy"):
            yield "loss.type", "is of no use to the trainer distill, whose loss on labels is the cross entropy"

    @property
    def top_k(self) -> int:
        """How many words of the teacher are stored for each token."""
        return getattr(self.data, "teacher_top_k", 0)


class DistillTrainer(Trainer):
    """Trains a student on chats to predict what its teacher predicts.

    The loss of an optimizer step is

        L = sum over trained tokens t of  w_d T^2 D(P_t, Q_t)  -  w_s log q(t)  +  w_h H_t  /  number of trained tokens,

    sum and number taken over the micro-batches of all ranks. P and Q are what teacher and student predict for t at the
    temperature T, D their divergence; T^2 keeps gradients as large at every temperature (Hinton et al. 2015,
    arXiv:1503.02531). q is the student's prediction at temperature 1. H is the mean, over pairs of layers and the
    numbers of a hidden state, of the squared distance of the two hidden states that t is predicted from (the way of
    SwiftKV, Qiao et al. 2024, arXiv:2410.03960).
    """

    name = "distill"
    config: DistillTrainerConfig
    model_factory: HFModelFactory
    tokenizer_factory: HFTokenizerFactory
    data_factory: DistillDataFactory
    optimizer_factory: OptimizerFactory
    scheduler_factory: SchedulerFactory
    checkpoint_engine: CheckpointEngine
    has_own_loss = True

    teacher: Any = None
    """The teacher, where it is asked while training."""

    def prepare(self) -> None:
        if not self.config.top_k:
            architecture = fitting_architecture(self.run, self.config.teacher)
            check_layer_pairs(self.run, "hidden_layers", self.config.hidden_layers, "teacher", architecture)
            self.teacher = self.run.frozen_model(self.config.teacher)

    def loss(self, batch: MicroBatch) -> LossSum:  # type: ignore[override]
        import torch.nn.functional as F

        config = self.config
        labels_BL = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        trained_BL = labels_BL != IGNORE_INDEX
        hidden = {"output_hidden_states": True} if config.hidden_layers else {}
        # The teacher first: what it says of tokens that are not trained is gone before the student is asked.
        said, theirs = self._ask_teacher(batch, trained_BL, hidden)
        output = self.model(**inputs_of(batch), use_cache=False, **hidden)
        sums = in_chunks(self._terms, output.logits[trained_BL], labels_BL[trained_BL], *said)
        figures = dict(zip(("divergence", "sft_loss", "agreement", "teacher_loss"), sums.unbind(), strict=False))
        total = config.distillation_weight * config.temperature**2 * sums[0] + config.sft_weight * sums[1]
        for (layer, other), theirs_ND in zip(config.hidden_layers, theirs, strict=True):
            own_ND = output.hidden_states[layer][trained_BL]
            distance = (own_ND.float() - theirs_ND.float()).square().mean(-1).sum()
            total = total + config.hidden_weight / len(config.hidden_layers) * distance
            figures[f"hidden/{layer}-{other}"] = distance
        number = trained_BL.sum()
        return LossSum(total, number).with_figures(
            {f"distillation/{name}": (value.detach(), number) for name, value in figures.items()}
        )

    def _ask_teacher(
        self, batch: MicroBatch, trained_BL: torch.Tensor, hidden: dict[str, bool]
    ) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
        """What is said of the N trained tokens: logits of all words, or stored words and log-probabilities; and the
        hidden states."""
        import torch

        if self.teacher is None:
            return stored_of(batch.columns, self.config.top_k, trained_BL), []
        with torch.no_grad():
            output = self.teacher(**inputs_of(batch), use_cache=False, **hidden)
            states = [output.hidden_states[layer][trained_BL] for _, layer in self.config.hidden_layers]
            return (output.logits[trained_BL],), states

    def _terms(self, student_NV: torch.Tensor, labels_N: torch.Tensor, *said: torch.Tensor) -> torch.Tensor:
        """Sums over N tokens: the divergence, -log p(label), how often teacher and student find the same word the
        likeliest, and -log p(label) of the teacher where it said that."""
        import torch
        import torch.nn.functional as F

        config, more = self.config, []
        if self.teacher is not None:
            (teacher_NV,) = said
            words = min(student_NV.shape[-1], teacher_NV.shape[-1])  # beyond, one of them is padded with unused words
            log_q, log_p = (tempered(logits[:, :words], config.temperature) for logits in (student_NV, teacher_NV))
            likeliest_N = log_p.argmax(-1)
            more = [F.cross_entropy(teacher_NV.float(), labels_N, reduction="sum")]
        else:
            ids_NK, log_p = said
            log_q = coarsened(tempered(student_NV, config.temperature), ids_NK)
            likeliest_N = ids_NK[:, 0]
        divergence = divergences(log_p, log_q, config.divergence, config.jensen_shannon_weight).sum()
        cross_entropy = F.cross_entropy(student_NV.float(), labels_N, reduction="sum")
        agreement = (student_NV.argmax(-1) == likeliest_N).sum().float()
        return torch.stack([divergence, cross_entropy, agreement, *more])
