"""The checkpoint engine ``huggingface``: a folder that plain transformers loads. Training cannot go on from it.

Weights are written shard by shard as the engine gives them, so that rank 0 holds no more than one shard.
"""

from __future__ import annotations

import copy
import json
from typing import Any, ClassVar

from arctic_huggingface.shards import ShardWriter
from arctic_training.checkpoint import CheckpointConfig, CheckpointEngine
from arctic_training.config import key
from arctic_training.errors import CheckpointError


class HFCheckpointConfig(CheckpointConfig):
    max_shard_size: int = key(5_000_000_000, ge=1, doc="Largest weight file in bytes; a tensor is never divided.")


class HFCheckpointEngine(CheckpointEngine):
    """Exports model, configuration and tokenizer."""

    name: ClassVar[str] = "huggingface"
    config: HFCheckpointConfig
    resumes = False

    def save(self, model: Any) -> None:
        """Write the model; rank 0 writes, every rank takes part in gathering.

        Raises:
            CheckpointError: a tensor is empty, not finite, of the wrong shape, missing or not the model's.
        """
        unwrapped = self.trainer.model_unwrapped
        first = self.global_rank == 0
        shards = ShardWriter(unwrapped, self.checkpoint_dir, self.config.max_shard_size) if first else None
        fault: Exception | None = None
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
            self._save_configuration(unwrapped)
            self.trainer.tokenizer.save_pretrained(self.checkpoint_dir)

    def load(self, model: Any) -> None:
        raise CheckpointError(
            "an export holds no optimizer state, so training cannot go on from it",
            where=str(self.checkpoint_dir),
            remedy="set auto_resume on a checkpoint entry without type, which saves the engine's own kind; "
            "to start anew from these weights, name the folder in model.name_or_path",
        )

    def _save_configuration(self, model: Any) -> None:
        config = copy.deepcopy(model.config)
        for name, value in getattr(model, "config_as_loaded", {}).items():
            setattr(config, name, value)
        config.architectures = [type(model).__name__]
        config.save_pretrained(self.checkpoint_dir)
        save_name = self.trainer.config.model.save_name
        if save_name:
            path = self.checkpoint_dir / "config.json"
            content = {"_name_or_path": save_name, **json.loads(path.read_text())}
            path.write_text(json.dumps(content, indent=2) + "\n")
        if getattr(model, "generation_config", None) is not None and model.can_generate():
            # Not save_pretrained: it refuses contradictory settings that published models do come with.
            model.generation_config.to_json_file(self.checkpoint_dir / "generation_config.json")
        if getattr(model, "_auto_class", None) is not None:
            from transformers.dynamic_module_utils import custom_object_save

            custom_object_save(model, self.checkpoint_dir, config=config)
