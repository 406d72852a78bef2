"""The checkpoint engine ``huggingface``: a folder that plain transformers loads. Training cannot go on from it.

Weights are written shard by shard as the engine gives them, so that rank 0 holds no more than one shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from arctic_huggingface.adapters import adapter_writer
from arctic_huggingface.layout import Layout
from arctic_huggingface.model_files import write_model_files
from arctic_huggingface.plain import plain_model
from arctic_huggingface.shards import ShardFiles, ShardWriter
from arctic_training.adapters import adapter_of
from arctic_training.checkpoint import CheckpointConfig, CheckpointEngine
from arctic_training.config import key
from arctic_training.errors import CheckpointError


class HFCheckpointConfig(CheckpointConfig):
    max_shard_size: int = key(5_000_000_000, ge=1, doc="Largest weight file in bytes; a tensor is never divided.")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from super().check()
        if self.auto_resume:
            yield "auto_resume", "an export holds the model alone: set it on an entry without type"


class HFCheckpointEngine(CheckpointEngine):
    """Exports model, configuration, tokenizer and model card; of a model that trains an adapter the adapter, in peft's
    form."""

    name: ClassVar[str] = "huggingface"
    config: HFCheckpointConfig
    resumes = False

    def save(self, model: Any) -> None:
        """Write the model; rank 0 writes, every rank takes part in gathering.

        Raises:
            CheckpointError: a tensor is empty, not finite, of the wrong shape, missing or not the model's, or the
                model's configuration makes another model.
        """
        unwrapped = self.trainer.model_unwrapped
        shards: ShardWriter | None = None
        fault: Exception | None = None
        try:
            if self.global_rank == 0:
                adapter, run, size = adapter_of(unwrapped), self.writer.run, self.config.max_shard_size
                if adapter is None:
                    shards = ShardWriter(unwrapped, Layout.of(unwrapped), ShardFiles(self.checkpoint_dir, size, run))
                else:
                    shards = adapter_writer(Layout.of(unwrapped), adapter, self.checkpoint_dir, run=run)
        except Exception as error:  # noqa: BLE001 - as below
            fault = error
        for name, tensor in self.trainer.engine.full_parameters():
            if shards is None or fault is not None:
                continue  # the other ranks are gathering, and would wait for this one for ever
            try:
                shards.add(name, tensor)
            except Exception as error:  # noqa: BLE001 - a full disk is none of Python's own errors to safetensors
                fault = error
        if fault is not None:
            raise fault
        if shards is not None:
            shards.finish()
            write_model_files(self.trainer, self.checkpoint_dir)
            if adapter_of(unwrapped) is None:
                plain_model(self.checkpoint_dir, shards.layout, self.run.say)

    def load(self, model: Any) -> None:
        raise CheckpointError(
            "an export holds no optimizer state, so training cannot go on from it",
            where=str(self.checkpoint_dir),
            remedy="set auto_resume on a checkpoint entry without type, which saves the engine's own kind; "
            "to start anew from these weights, name the folder in model.name_or_path",
        )
