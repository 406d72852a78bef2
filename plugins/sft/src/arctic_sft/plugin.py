"""What the sft plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("sft", "arctic_sft.trainer:SFTTrainer")
    components.data("sft", "arctic_sft.data:SFTDataFactory")
