"""What the embed plugin offers to Arctic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components
    from arctic_training.trainer import Trainer


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.trainer("embed", "arctic_embed.trainer:EmbedTrainer")
    components.model("embed", "arctic_embed.model:EmbedModelFactory")
    components.data("embed", "arctic_embed.data:EmbedDataFactory")


@hookimpl(trylast=True)  # beside the model's files, which another plugin writes
def arctic_write_checkpoint(path: str, trainer: Trainer) -> None:
    from arctic_embed.export import write_modules

    write_modules(trainer, Path(path))
