"""The keys of a recipe that learns from preferences, and what they have to do with each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from arctic_dpo.losses import LOSSES
from arctic_training.config import key
from arctic_training.model import ModelConfig
from arctic_training.trainer_config import TrainerConfig
from arctic_training.wording import counted

LossName = Literal[
    "sigmoid", "hinge", "ipo", "robust", "bco_pair", "apo_zero", "apo_down", "sppo_hard", "exo_pair", "discopop",
    "orpo", "simpo", "cpo",
]  # fmt: skip
OF_SOME_LOSSES = ("label_smoothing", "simpo_gamma", "cpo_alpha", "orpo_lambda", "discopop_tau")


class DPOTrainerConfig(TrainerConfig):
    ref_model: ModelConfig | None = key(
        None,
        doc="The model that the policy is held against, with the keys of `model`. Without it an adapter of the policy "
        "is switched off instead, or, with precompute_reference, the policy is asked before the first step.",
    )
    precompute_reference: bool = key(
        False,
        doc="Ask the reference for all rows before training, keep what it says beside the prepared data, and free it.",
    )
    loss_type: LossName | list[LossName] = key("sigmoid", doc="The loss, or several that are added up.")
    loss_weights: list[float] = key(factory=list, ge=0, doc="What each loss is multiplied by; 1 by default.")
    beta: float = key(0.1, gt=0, doc="Reward of an answer for each nat of its log-ratio.")
    label_smoothing: float = key(
        0.0, ge=0, lt=0.5, doc="Share of the pairs whose answers are taken to be exchanged by mistake."
    )
    length_normalization: bool = key(
        False, doc="Divide log-probabilities by the tokens of the answer; ipo, orpo and simpo always do."
    )
    simpo_gamma: float = key(0.5, ge=0, doc="Margin between the rewards that simpo asks for.")
    cpo_alpha: float = key(1.0, ge=0, doc="Weight of the likelihood of the chosen answer in cpo.")
    orpo_lambda: float = key(0.1, ge=0, doc="Weight of the odds ratio in orpo.")
    discopop_tau: float = key(0.05, gt=0, doc="Temperature of discopop.")
    disable_dropout: bool = key(True, doc="Train without dropout; the reference never has any.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        names = ", ".join(self.loss_types)
        if not self.loss_types or len(set(self.loss_types)) < len(self.loss_types):
            yield "loss_type", "expected one loss, or a list of different ones"
            return
        if self.loss_weights and len(self.loss_weights) != len(self.loss_types):
            given = counted(len(self.loss_weights), "weight")
            yield "loss_weights", f"{given} for {counted(len(self.loss_types), 'loss', 'losses')}"
        taken = {name for loss in self.loss_types for name in LOSSES[loss].takes}
        for name in OF_SOME_LOSSES:
            if name not in taken and name in self.given and getattr(self, name):
                yield name, f"has no effect on loss_type {names}: leave it out"
        if "exo_pair" in self.loss_types and not self.label_smoothing:
            yield "label_smoothing", "exo_pair needs a share above 0, such as 1e-3"
        if self.length_normalization and all(LOSSES[loss].per_token for loss in self.loss_types):
            yield "length_normalization", f"{names} divides by the tokens anyway: leave it out"
        yield from self._check_reference(names)

    def _check_reference(self, names: str) -> Iterator[tuple[str, str]]:
        if not self.needs_reference:
            for name in ("ref_model", "precompute_reference"):
                if getattr(self, name):
                    yield name, f"loss_type {names} has no reference: leave it out"
        elif self.precompute_reference and self.data.streaming:
            yield "precompute_reference", "a stream has no rows before it is read: set data.streaming: false"
        elif not (self.ref_model or self.precompute_reference or getattr(self.model, "peft_config", None)):
            yield (
                "ref_model",
                f"loss_type {names} needs a reference: name a model here, as a rule the one that training starts from",
            )

    @property
    def loss_types(self) -> list[LossName]:
        """The losses, one or several."""
        return [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type

    @property
    def rewards_are_per_token(self) -> bool:
        """Whether rewards are told for each token of an answer."""
        return self.length_normalization or all(LOSSES[loss].per_token for loss in self.loss_types)

    @property
    def needs_reference(self) -> bool:
        """Whether any of the losses is told log-ratios."""
        return any(LOSSES[loss].needs_reference for loss in self.loss_types)
