"""The factory of Muon: which parameters are stepped as matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_training.config import key
from arctic_training.errors import UsageError
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch


class MuonConfig(OptimizerConfig):
    betas: tuple[float, float] = key((0.9, 0.95), doc="Decay rates of AdamW's means, for what is no matrix.")
    momentum: float = key(0.95, ge=0, lt=1, doc="Decay rate of the momentum of matrices.")
    nesterov: bool = key(True, doc="Look ahead along the momentum.")
    newton_schulz_steps: int = key(5, ge=1, le=20, doc="Iterations that make an update orthogonal.")


class MuonFactory(OptimizerFactory):
    """Muon for the matrices of a model's body, AdamW for embeddings, the output head, vectors and all else."""

    name = "muon"
    config: MuonConfig
    needs_whole_parameters: ClassVar[bool] = True

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        from arctic_optimizers.muon_step import Muon

        config, matrices = self.config, body_matrices(model)
        groups = []
        for group in self.parameter_groups(model):
            for orthogonal in (False, True):
                chosen = [parameter for parameter in group["params"] if (id(parameter) in matrices) == orthogonal]
                if chosen:
                    groups.append({**group, "params": chosen, "orthogonal": orthogonal})
        if not any(group["orthogonal"] for group in groups):
            raise UsageError(
                "muon steps the matrices of a model's body, and none of them is trained",
                where="optimizer.type",
                remedy="take adamw, or train more of the model",
            )
        groups.sort(key=lambda group: not group["orthogonal"])
        numbers = [
            sum(p.numel() for group in groups if group["orthogonal"] == kind for p in group["params"])
            for kind in (1, 0)
        ]
        self.run.say(f"optimizer: muon for {numbers[0]:,} parameters in matrices, AdamW for {numbers[1]:,} others")
        return Muon(
            groups,
            lr=config.learning_rate,
            betas=config.betas,
            momentum=config.momentum,
            nesterov=config.nesterov,
            newton_schulz_steps=config.newton_schulz_steps,
        )


def body_matrices(model: torch.nn.Module) -> set[int]:
    """The ids of the parameters that map vectors to vectors: matrices that are neither embedding nor output head."""
    import torch

    outside = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        outside.add(id(head.weight))
    return {id(p) for p in model.parameters() if p.ndim == 2} - outside
