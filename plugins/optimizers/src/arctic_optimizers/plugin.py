"""What the optimizers plugin offers, and when a schedule-free run goes from one of its points to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


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
        AdamW8bitFactory.refuse_without_kernels(run.device.type)


@hookimpl
def arctic_evaluate_start(trainer: Any) -> None:
    from arctic_optimizers.schedule_free import use

    use("average", trainer)


@hookimpl
def arctic_evaluate_end(trainer: Any) -> None:
    from arctic_optimizers.schedule_free import use

    use("training_point", trainer)


@hookimpl
def arctic_before_save(trainer: Any) -> None:
    from arctic_optimizers.schedule_free import use

    use("average", trainer)


@hookimpl
def arctic_write_checkpoint(trainer: Any) -> None:
    from arctic_optimizers.schedule_free import use

    use("training_point", trainer)


@hookimpl
def arctic_after_load(trainer: Any) -> None:
    from arctic_optimizers.schedule_free import use

    use("training_point", trainer)
