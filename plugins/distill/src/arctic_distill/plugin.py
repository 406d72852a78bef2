"""What the distill plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("distill", "arctic_distill.trainer:DistillTrainer")
    components.data("distill", "arctic_distill.data:DistillDataFactory")
