"""The factory of Muon: which parameters are stepped as matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from arctic_training.config import key
from arctic_training.errors import UsageError
from arctic_training.name_patterns import matches, refuse_unmatched
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory

if TYPE_CHECKING:
    import torch


class MuonConfig(OptimizerConfig):
    betas: tuple[float, float] = key((0.9, 0.95), doc="Decay rates of AdamW's means, for what is no matrix.")
    momentum: float = key(0.95, ge=0, lt=1, doc="Decay rate of the momentum of matrices.")
    nesterov: bool = key(True, doc="Look ahead along the momentum.")
    newton_schulz_steps: int = key(5, ge=1, le=20, doc="Iterations that make an update orthogonal.")
    adamw: list[str] = key(
        factory=list,
        doc="Patterns over names of matrices that AdamW steps besides embeddings and output head, such as `score.*`.",
    )


class MuonFactory(OptimizerFactory):
    """Muon for the matrices of a model's body, AdamW for embeddings, the output head, vectors and all else."""

    name = "muon"
    config: MuonConfig
    needs_whole_parameters: ClassVar[bool] = True

    def create_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        from arctic_optimizers.muon_step import Muon

        config, matrices = self.config, body_matrices(model)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        refuse_unmatched(config.adamw, list(trained), config, "adamw", self.run)
        matrices -= {id(parameter) for name, parameter in trained.items() if matches(name, config.adamw)}
        groups, sizes = [], {True: 0, False: 0}
        for group in self.parameter_groups(model):
            for orthogonal in sizes:
                chosen = [parameter for parameter in group["params"] if (id(parameter) in matrices) == orthogonal]
                sizes[orthogonal] += sum(parameter.numel() for parameter in chosen)
                if chosen:
                    groups.append({**group, "params": chosen, "orthogonal": orthogonal})
        if not sizes[True]:
            message = "muon steps the matrices of a model's body, and none is trained: take adamw, or train more"
            raise UsageError(message, where=self.run.config.recipe.place(("optimizer", "type")))
        self.run.say(f"optimizer: muon for {sizes[True]:,} parameters in matrices, AdamW for {sizes[False]:,} others")
        keys = {name: getattr(config, name) for name in ("betas", "momentum", "nesterov", "newton_schulz_steps")}
        return Muon(groups, lr=config.learning_rate, **keys)


def body_matrices(model: torch.nn.Module) -> set[int]:
    """The ids of the parameters that map vectors to vectors: matrices that are neither embedding nor output head."""
    import torch

    outside = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is not None:
        outside.add(id(head.weight))
    return {id(p) for p in model.parameters() if p.ndim == 2} - outside
