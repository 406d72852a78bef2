"""The commands that this plugin brings to ``arctic``; a module of its own, so that help loads nothing else."""

from __future__ import annotations

from typing import Any

from arctic_training.hookspecs import hookimpl


@hookimpl
def arctic_register_commands(commands: Any) -> None:
    commands.add("generate", "arctic_huggingface.generate:command", "Generate text with a trained model.")
    commands.add("export", "arctic_huggingface.export:command", "Make a model that transformers loads of a checkpoint.")
