"""What the optimizers plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.optimizer("adafactor", "arctic_optimizers.adafactor:AdafactorFactory")
    components.optimizer("muon", "arctic_optimizers.muon:MuonFactory")
    components.optimizer("adamw_8bit", "arctic_optimizers.adamw_8bit:AdamW8bitFactory")
