"""What the optimizers plugin offers, and when a schedule-free run goes from one of its points to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_optimizers.points import use
from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components
    from arctic_training.trainer import Trainer


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.optimizer("adafactor", "arctic_optimizers.adafactor:AdafactorFactory")
    components.optimizer("muon", "arctic_optimizers.muon:MuonFactory")
    components.optimizer("schedule_free", "arctic_optimizers.schedule_free:ScheduleFreeFactory")
    components.optimizer("adamw_8bit", "arctic_optimizers.adamw_8bit:AdamW8bitFactory")


@hookimpl
def arctic_configure(run: Any) -> None:
    from arctic_optimizers.adamw_8bit import AdamW8bitFactory

    if run.config.optimizer.component is AdamW8bitFactory and not run.only_prepares:
        AdamW8bitFactory.refuse_without_kernels(run.device.type, run.config.recipe.place(("optimizer", "type")))


@hookimpl
def arctic_evaluate_start(trainer: Trainer) -> None:
    use("average", trainer)


@hookimpl
def arctic_evaluate_end(trainer: Trainer) -> None:
    use("training_point", trainer)


@hookimpl
def arctic_before_save(trainer: Trainer) -> None:
    use("average", trainer)


@hookimpl
def arctic_write_checkpoint(trainer: Trainer) -> None:
    use("training_point", trainer)


@hookimpl
def arctic_after_load(trainer: Trainer) -> None:
    use("training_point", trainer)
