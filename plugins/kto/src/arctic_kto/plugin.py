"""What the kto plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("kto", "arctic_kto.trainer:KTOTrainer")
    components.data("kto", "arctic_kto.data:KTODataFactory")
