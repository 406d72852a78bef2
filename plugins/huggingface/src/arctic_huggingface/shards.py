"""Weights into safetensors files of a bounded size, each tensor checked against the model before it is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from arctic_huggingface.published import ChosenNames, PublishedNames
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    import torch

    from arctic_huggingface.layout import Layout

INDEX = "model.safetensors.index.json"
DIVERGED = "training has diverged: go back to an earlier checkpoint"


def _now(function: Callable[[], Any]) -> None:
    function()


class ShardFiles:
    """Takes tensors one by one, and holds no more of them than one file.

    Args:
        directory: an existing directory.
        max_size: largest file in bytes; a tensor is never divided.
        stem: what the files are called.
        run: calls a function that writes files and gives their paths, now or later; what it holds stays until then.
    """

    def __init__(
        self, directory: Path, max_size: int, run: Callable[[Callable[[], Any]], object] = _now, stem: str = "model"
    ) -> None:
        self.stem = stem
        self.run = run
        self.directory = directory
        self.max_size = max_size
        self.pending: dict[str, torch.Tensor] = {}
        self.pending_size = 0
        self.written: list[list[str]] = []
        self.total_size = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a contiguous tensor with a storage of its own, and write a file when it does not fit into the one
        begun."""
        if self.pending and self.pending_size + tensor.nbytes > self.max_size:
            self._write()
        self.pending[name] = tensor
        self.pending_size += tensor.nbytes
        self.total_size += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, and give the files their final names."""
        self._write()
        self.run(self._name)

    def _name(self) -> list[Path]:
        if len(self.written) == 1:
            return [self._part(0).rename(self.directory / f"{self.stem}.safetensors")]
        weight_map = {}
        for number, names in enumerate(self.written):
            file = f"{self.stem}-{number + 1:05d}-of-{len(self.written):05d}.safetensors"
            self._part(number).rename(self.directory / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self.total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (self.directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        return [self.directory / file for file in (*dict.fromkeys(weight_map.values()), INDEX)]

    def _write(self) -> None:
        from safetensors.torch import save_file

        tensors, path = self.pending, self._part(len(self.written))

        def write() -> list[Path]:
            save_file(tensors, path, metadata={"format": "pt"})
            tensors.clear()
            return []  # it gets its name at the end

        self.written.append(list(tensors))
        self.pending, self.pending_size = {}, 0
        self.run(write)

    def _part(self, number: int) -> Path:
        return self.directory / f"{self.stem}.part-{number}.safetensors"


class ShardWriter:
    """Takes the entries of a model's state one by one, checks them, and writes them under their published names.

    Args:
        model: whose names are converted, with or without content; None writes the names as they are.
        layout: what its state consists of.
        files: where the tensors go.
        dtype: the precision to write instead of the model's own; tensors that the model keeps in another stay as they
            are.
        names: published names by name, of those tensors that are written; all others are left out.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        files: ShardFiles,
        dtype: torch.dtype | None = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.layout = layout
        self.files = files
        self.dtype = dtype or layout.dtype
        self.seen: set[str] = set()
        self.published = PublishedNames(model, layout) if names is None else ChosenNames(names)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor.

        Raises:
            CheckpointError: it is not what the model has under this name.
        """
        self._check(name, tensor)
        self.seen.add(name)
        if name in self.layout.tied:  # the same tensor as another, which is written
            return
        dtype = self.layout.entries[name].dtype
        # A view of a larger storage would be refused, and one that the engine reuses would be overwritten.
        tensor = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if dtype == self.layout.dtype != self.dtype:
            tensor = tensor.to(self.dtype)
            self._check_finite(name, tensor, "write another precision: its values do not fit into this one")
        self._append(self.published.give(name, tensor))

    def finish(self) -> None:
        """Write what is left.

        Raises:
            CheckpointError: not all of the model was given.
        """
        missing = sorted(self.layout.entries.keys() - self.seen - self.layout.tied)
        if missing or not self.layout.entries:
            others = f", and {len(missing) - 1} others are missing too" if len(missing) > 1 else ""
            raise self._error(f"the engine gave no {missing[0]!r}{others}" if missing else "the model has no tensors")
        self._append(self.published.rest())
        self.files.finish()

    def _check(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self.layout.entries:
            raise self._error(f"the engine gave {name!r}, which the model does not have")
        shape = self.layout.entries[name].shape
        if tuple(tensor.shape) != shape or tensor.numel() == 0:
            found = "is empty" if tensor.numel() == 0 else f"has the shape {list(tensor.shape)}"
            raise self._error(f"{name!r} {found}, and the model's has the shape {list(shape)}")
        self._check_finite(name, tensor, DIVERGED)

    def _check_finite(self, name: str, tensor: torch.Tensor, remedy: str) -> None:
        import torch

        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise self._error(f"{name!r} holds values that are not finite", remedy)

    def _append(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self.files.add(name, tensor)

    def _error(self, message: str, remedy: str = "this is a fault of the engine: please report it") -> CheckpointError:
        return CheckpointError(message, where=str(self.files.directory), remedy=remedy)
