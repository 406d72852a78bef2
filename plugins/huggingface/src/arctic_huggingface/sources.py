"""Checkpoints as sources of a model: found and verified, their weights read one by one, their files copied."""

from __future__ import annotations

import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from arctic_huggingface.adapters import ADAPTER_CONFIG, adapter_writer, read_description
from arctic_huggingface.layout import Entry, Layout
from arctic_huggingface.model_files import FOLDER, LAYOUT_FILE
from arctic_huggingface.plain import plain_model
from arctic_huggingface.shards import INDEX, ShardFiles, ShardWriter
from arctic_training.errors import CheckpointError
from arctic_training.manifest import newest_checkpoint, refuse_foreign, verify
from arctic_training.retention import MANIFEST

if TYPE_CHECKING:
    import torch

    from arctic_training.adapters import Adapter
    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.plugins import PluginManager

Say = Callable[[str], None]


def find_source(path: Path, manager: PluginManager, say: Say, *, trusted: bool = False) -> Source:
    """The checkpoint at a path, whose files are as its manifest says.

    Args:
        path: a checkpoint, or a directory of them, of which the newest that verifies is taken.
        manager: knows the kinds of checkpoint.
        say: is told what is passed over, and what may not be as expected.
        trusted: whether it may be one that others could have written.

    Raises:
        CheckpointError: there is none, others could have written it, or a model cannot be made of it.
        PluginError: nobody knows its kind.
    """
    path = _find(path, say)
    refuse_foreign(path, trusted=trusted)
    manifest = json.loads((path / MANIFEST).read_text())
    kind = manifest["type"]
    if (path / FOLDER / LAYOUT_FILE).is_file():
        engine: Any = manager.registry.get("checkpoint", kind, needed_by=str(path))
        return Resumable(path, manifest, say, engine)
    if (path / ADAPTER_CONFIG).is_file():
        return ExportedAdapter(path, manifest, say)
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return Exported(path, manifest, say)
    raise CheckpointError(
        f"this {kind} checkpoint does not describe its model: it was written by a run without the huggingface plugin, "
        "or whose model or tokenizer is not one of transformers",
        where=str(path),
        remedy="resume it with arctic-plugin-huggingface installed, and save again",
    )


def _find(path: Path, say: Say) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            "there is no such directory", where=str(path), remedy="give the directory of a checkpoint, or of several"
        )
    if (path / MANIFEST).is_file() or path.name.startswith("global_step_"):
        if problem := verify(path):
            raise CheckpointError(
                f"this checkpoint is not as it was written: {problem}", where=str(path), remedy="choose another one"
            )
        return path
    newest, passed_over = newest_checkpoint(path)
    for other, problem in passed_over:
        say(f"warning: passed over {other}: {problem}")
    if newest is None:
        raise CheckpointError(
            "there is no complete checkpoint of Arctic in here",
            where=str(path),
            remedy="give a directory global_step_<n>, or the output_dir that a recipe names",
        )
    return newest


class Source(ABC):
    """A verified checkpoint."""

    def __init__(self, path: Path, manifest: dict[str, Any], say: Say) -> None:
        self.path = path
        self.kind: str = manifest["type"]
        self.step: int = manifest["step"]
        self.num_ranks: int = manifest["world_size"]
        self.say = say
        self.adapter = self._adapter()
        self.layout = self._layout()

    def size(self, dtype: torch.dtype | None) -> int:
        """Bytes of the weights in a precision, or in the model's own."""
        layout = self.layout
        return sum(
            math.prod(entry.shape) * (dtype if dtype and entry.dtype == layout.dtype else entry.dtype).itemsize
            for name, entry in layout.entries.items()
            if name not in layout.tied
        )

    def write_weights(self, directory: Path, max_shard_size: int, dtype: torch.dtype | None) -> None:
        """Write them as safetensors.

        Args:
            directory: an existing directory.
            max_shard_size: largest file in bytes.
            dtype: the precision to write; None for the model's own.

        Raises:
            CheckpointError: they are not those that the checkpoint describes.
        """
        if self.adapter is not None:
            writer = adapter_writer(self.layout, self.adapter, directory, dtype)
        else:
            writer = ShardWriter(self._model(), self.layout, ShardFiles(directory, max_shard_size), dtype)
        for name, tensor in self._tensors():
            writer.add(name, tensor)
        writer.finish()

    @abstractmethod
    def copy_files(self, directory: Path) -> None:
        """Copy all that belongs to the model beside its weights."""

    @abstractmethod
    def _layout(self) -> Layout: ...

    @abstractmethod
    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def _adapter(self) -> Adapter | None:
        """The adapter that it holds in the place of a whole model."""
        return None

    def _model(self) -> Any:
        """What knows the published names of the weights; None where they have these names already."""
        return None


class Resumable(Source):
    """A checkpoint that training can go on from, with the files of its model in a folder."""

    def __init__(self, path: Path, manifest: dict[str, Any], say: Say, engine: type[CheckpointEngine]) -> None:
        super().__init__(path, manifest, say)
        self.engine = engine

    def copy_files(self, directory: Path) -> None:
        ignored = shutil.ignore_patterns(LAYOUT_FILE)
        shutil.copytree(self.path / FOLDER, directory, ignore=ignored, dirs_exist_ok=True)

    def _layout(self) -> Layout:
        return Layout.read(self.path / FOLDER / LAYOUT_FILE)

    def _adapter(self) -> Adapter | None:
        return read_description(self.path / FOLDER)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.engine.read_model(self.path)

    def _model(self) -> Any:
        return plain_model(self.path / FOLDER, self.layout, self.say)


class Exported(Source):
    """A checkpoint of type ``huggingface``: it may get another precision and other sizes of files."""

    def copy_files(self, directory: Path) -> None:
        ignored = shutil.ignore_patterns(MANIFEST, INDEX, "*.safetensors")
        shutil.copytree(self.path, directory, ignore=ignored, dirs_exist_ok=True)

    def _layout(self) -> Layout:
        import torch

        entries = {name: Entry(tuple(tensor.shape), tensor.dtype) for name, tensor in self._tensors()}
        dtype = json.loads((self.path / "config.json").read_text())["dtype"]  # also beside an adapter
        return Layout(entries, frozenset(), getattr(torch, dtype))

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        from safetensors import safe_open

        for file in sorted(self.path.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no mapping
                    yield name, tensors.get_tensor(name)


class ExportedAdapter(Exported):
    """A checkpoint of type ``huggingface`` of an adapter, whose weights have their published names already."""

    def _adapter(self) -> Adapter | None:
        adapter = read_description(self.path)
        names = {name: name for name, _ in self._tensors()}
        return attrs.evolve(adapter, names=names) if adapter is not None else None
