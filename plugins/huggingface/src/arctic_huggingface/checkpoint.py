"""The checkpoint engine ``huggingface``: a folder that plain transformers loads. Training cannot go on from it.

Weights are written shard by shard as the engine gives them, so that rank 0 never holds more than one shard beside the model.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from arctic_training.checkpoint import CheckpointConfig, CheckpointEngine
from arctic_training.config import key
from arctic_training.errors import ArcticError, CheckpointError

if TYPE_CHECKING:
    import torch

    Expected = dict[str, tuple[tuple[int, ...], torch.dtype]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


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
        shards = _Shards(unwrapped, self.checkpoint_dir, self.config.max_shard_size) if first else None
        fault: Exception | None = None
        for name, tensor in self.trainer.engine.full_parameters():
            if shards is None or fault is not None:
                continue  # the other ranks are gathering, and would wait for this one for ever
            try:
                shards.add(name, tensor)
            except (ArcticError, OSError) as error:
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


class _Shards:
    """Writes tensors into safetensors files of a bounded size, checking each against the model."""

    def __init__(self, model: Any, directory: Path, max_size: int) -> None:
        self.directory = directory
        self.max_size = max_size
        self.expected = _expected(model)
        self.tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self.seen: set[str] = set()
        self.pending: dict[str, torch.Tensor] = {}
        self.pending_size = 0
        self.written: list[list[str]] = []
        self.total_size = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, and write a file when it does not fit into the one begun.

        Raises:
            CheckpointError: the tensor is not what the model has under this name.
        """
        self._check(name, tensor)
        self.seen.add(name)
        if name in self.tied:  # the same tensor as another, which is written
            return
        tensor = tensor.detach().to("cpu", self.expected[name][1]).contiguous()
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.pending_size + size > self.max_size:
            self._write()
        # A view of a larger storage would be refused, and one that the engine reuses would be overwritten.
        self.pending[name] = tensor.clone()
        self.pending_size += size
        self.total_size += size

    def finish(self) -> None:
        """Write what is left, and give the files their final names.

        Raises:
            CheckpointError: the engine has not given all of the model.
        """
        missing = sorted(self.expected.keys() - self.seen - self.tied.keys())
        if missing:
            raise self._error(f"the engine gave no {missing[0]!r}, and {len(missing) - 1} others are missing too")
        self._write()
        if len(self.written) == 1:
            self._part(0).rename(self.directory / WEIGHTS)
            return
        weight_map = {}
        for number, names in enumerate(self.written):
            file = f"model-{number + 1:05d}-of-{len(self.written):05d}.safetensors"
            self._part(number).rename(self.directory / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self.total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        import torch

        if name not in self.expected:
            raise self._error(f"the engine gave {name!r}, which the model does not have")
        shape, _ = self.expected[name]
        if tuple(tensor.shape) != shape:
            found = "is empty" if tensor.numel() == 0 else f"has the shape {list(tensor.shape)}"
            raise self._error(f"{name!r} {found}, and the model's has the shape {list(shape)}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise self._error(
                f"{name!r} holds values that are not finite", "training has diverged: go back to an earlier checkpoint"
            )

    def _write(self) -> None:
        from safetensors.torch import save_file

        save_file(self.pending, self._part(len(self.written)), metadata={"format": "pt"})
        self.written.append(list(self.pending))
        self.pending, self.pending_size = {}, 0

    def _part(self, number: int) -> Path:
        return self.directory / f"model.part-{number}.safetensors"

    def _error(self, message: str, remedy: str = "this is a fault of the engine: please report it") -> CheckpointError:
        return CheckpointError(message, where=str(self.directory), remedy=remedy)


def _expected(model: Any) -> Expected:
    """Shape and precision of each entry of the model's state; ``ds_shape`` is the whole shape of a partitioned parameter."""
    return {
        name: (tuple(getattr(tensor, "ds_shape", tensor.shape)), tensor.dtype)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
