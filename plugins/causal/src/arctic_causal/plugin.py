"""What the causal plugin offers to Arctic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("causal", "arctic_causal.trainer:CausalTrainer")
    components.data("causal", "arctic_causal.data:CausalDataFactory")
    components.data_source("huggingface_causal", "arctic_causal.source:HFCausalDataSource")
