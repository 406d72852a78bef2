"""Weights into safetensors files of a bounded size, each tensor checked against the model before it is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    Expected = Mapping[str, tuple[tuple[int, ...], torch.dtype]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Takes the tensors of a model one by one, and holds no more of them than one file.

    Args:
        model: whose state is written.
        directory: an existing directory.
        max_size: largest file in bytes.
    """

    def __init__(self, model: Any, directory: Path, max_size: int) -> None:
        self.directory = directory
        self.max_size = max_size
        self.expected = _expected(model)
        self.tied = set(getattr(model, "all_tied_weights_keys", None) or {})
        self.published = _PublishedNames(model, self.expected, self.tied)
        self.seen: set[str] = set()
        self.held_back: dict[str, torch.Tensor] = {}
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
        # A view of a larger storage would be refused, and one that the engine reuses would be overwritten.
        tensor = tensor.detach().to("cpu", self.expected[name][1], copy=True).contiguous()
        if self.published.one_by_one:
            self._append(self.published.of({name: tensor}))
        else:
            self.held_back[name] = tensor

    def finish(self) -> None:
        """Write what is left, and give the files their final names.

        Raises:
            CheckpointError: the engine has not given all of the model.
        """
        missing = sorted(self.expected.keys() - self.seen - self.tied)
        if missing:
            others = f", and {len(missing) - 1} others are missing too" if len(missing) > 1 else ""
            raise self._error(f"the engine gave no {missing[0]!r}{others}")
        if self.held_back:
            self._append(self.published.of(self.held_back))
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

    def _append(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            if self.pending and self.pending_size + size > self.max_size:
                self._write()
            self.pending[name] = tensor
            self.pending_size += size
            self.total_size += size

    def _write(self) -> None:
        from safetensors.torch import save_file

        save_file(self.pending, self._part(len(self.written)), metadata={"format": "pt"})
        self.written.append(list(self.pending))
        self.pending, self.pending_size = {}, 0

    def _part(self, number: int) -> Path:
        return self.directory / f"model.part-{number}.safetensors"

    def _error(self, message: str, remedy: str = "this is a fault of the engine: please report it") -> CheckpointError:
        return CheckpointError(message, where=str(self.directory), remedy=remedy)


class _PublishedNames:
    """From the model's tensors to those of its published checkpoints, which differ where transformers joins them in
    memory, such as the experts of a layer.

    ``one_by_one`` tells whether every tensor can be converted by itself; it is found out by trying without content.
    """

    def __init__(self, model: Any, expected: Expected, tied: set[str]) -> None:
        import torch

        self.model = model
        empty = {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, (shape, dtype) in expected.items()
            if name not in tied
        }
        alone: dict[str, torch.Tensor] = {}
        for name, tensor in empty.items():
            alone.update(self._converted({name: tensor}))
        together = self._converted(empty)
        self.one_by_one = {name: tensor.shape for name, tensor in alone.items()} == {
            name: tensor.shape for name, tensor in together.items()
        }

    def of(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors as published checkpoints have them, each with a storage of its own."""
        return {
            name: tensor.contiguous() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            for name, tensor in self._converted(tensors).items()
        }

    def _converted(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        return revert_weight_conversion(self.model, tensors)


def _expected(model: Any) -> Expected:
    """Shape and precision of each entry of the model's state; ``ds_shape`` is the shape of a partitioned one."""
    return {
        name: (tuple(getattr(tensor, "ds_shape", tensor.shape)), tensor.dtype)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
