"""The model's tensors out of DeepSpeed's checkpoint files, one by one, without ranks, whatever number of them wrote.

Stages 0 to 2 keep the model whole in one file. Stage 3 divides every parameter among the ranks: rank r has the r-th of
equal parts, the last filled up. Trained ones stand in fp32, one after the other in the order of ``param_shapes``, in
flat pieces whose ends mean nothing; frozen ones stand by themselves.

Files are mapped into memory and not read, so that a tensor costs memory from its turn on; those of stage 3, which hold
fp32 where the model may have 16 bits, are let go again as they are read. Reading unpickles, so the caller verifies the
manifest of the directory first.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_deepspeed import process
from arctic_deepspeed.checkpoint_files import DESCRIPTION_FILE, TAG
from arctic_training.distributed import World
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    import torch

WHOLE_MODEL = "mp_rank_00_model_states.pt"
MODEL_PART = "zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
OPTIMIZER_PARTS = "*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
"""Names that DeepSpeed gives; those of the optimizer begin with the precision."""
MOST_READ = 64 * 2**20
"""Bytes of a rank's file that are read before it is mapped anew: enough to make that a small part of the time."""


def read_model(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Each entry of the model's state by name, whole and on the CPU; trained ones of stage 3 in fp32.

    Args:
        path: a complete checkpoint.

    Raises:
        CheckpointError: a file is missing or is not laid out as described above.
    """
    import_quietly()  # what is unpickled names its classes
    try:
        description = json.loads((path / DESCRIPTION_FILE).read_text("utf-8"))
        if description["zero_stage"] < 3:
            yield from mapped(path / TAG / WHOLE_MODEL)["module"].items()
        else:
            yield from _assembled(path / TAG, description["num_ranks"])
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"the model cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy="choose another checkpoint",
        ) from error


def import_quietly() -> None:
    """Import DeepSpeed where nobody has chosen a device for it, which it would otherwise say on standard output."""
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    added = process.prepare_environment(World(), device.type)
    try:
        process.import_without_compiling()
    finally:
        for name in added:
            del os.environ[name]


def _assembled(folder: Path, num_ranks: int) -> Iterator[tuple[str, torch.Tensor]]:
    models = [mapped(folder / MODEL_PART.format(rank=rank)) for rank in range(num_ranks)]
    first = models[0]
    other_names: dict[str, list[str]] = {}
    for name, original in dict(first["shared_params"]).items():
        other_names.setdefault(original, []).append(name)
    for name, tensor in _entries(first, models, [_FlatParts(folder, rank) for rank in range(num_ranks)]):
        for each in (name, *other_names.get(name, ())):
            yield each, tensor


def _entries(
    first: dict[str, Any], models: Sequence[dict[str, Any]], flat: Sequence[_FlatParts]
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for name in first["buffer_names"]:
        if name in first["module"]:  # those that are not kept are no part of the state
            yield name, first["module"][name]
    num_ranks = len(models)
    for name, shape in (first.get("frozen_param_shapes") or {}).items():
        fragments = [model["frozen_param_fragments"][name].flatten() for model in models]
        yield name, torch.cat(fragments)[: math.prod(shape)].view(tuple(shape))
    begin = 0
    for shapes in first["param_shapes"]:
        for name, shape in shapes.items():
            size = math.prod(shape)
            part = math.ceil(size / num_ranks)
            pieces = [piece for parts in flat for piece in parts.cut(begin, part)]
            yield name, torch.cat(pieces)[:size].view(tuple(shape))
            del pieces  # or it would keep the files mapped
            begin += part


def optimizer_file(folder: Path, rank: int) -> Path:
    """The file with a rank's part of the optimizer's state.

    Raises:
        FileNotFoundError: there is none.
    """
    name = OPTIMIZER_PARTS.format(rank=rank)
    file = next(folder.glob(name), None)
    if file is None:
        raise FileNotFoundError(f"there is no {name}")
    return file


class _FlatParts:
    """The trained parameters of one rank: flat tensors that follow each other in a file.

    What was read of a mapped file stays in memory as long as any of it is mapped: so it is mapped anew now and then.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.file = optimizer_file(folder, rank)
        self.parts: list[torch.Tensor] = []
        self.bytes_read = MOST_READ

    def cut(self, begin: int, size: int) -> Iterator[torch.Tensor]:
        """Elements ``begin`` to ``begin + size``."""
        if self.bytes_read >= MOST_READ:
            self.parts = []
            self.parts = mapped(self.file)["optimizer_state_dict"]["fp32_flat_groups"]
            self.bytes_read = 0
        for part in self.parts:
            if begin < part.numel() and size > 0:
                piece = part[begin : begin + size]
                self.bytes_read += piece.nbytes
                size -= piece.numel()
                yield piece
            begin = max(0, begin - part.numel())
        if size > 0:
            raise ValueError(f"the optimizer's files lack {size} elements")


def mapped(file: Path) -> dict[str, Any]:
    """What a file holds, its tensors mapped and not read."""
    import torch

    return torch.load(file, map_location="cpu", weights_only=False, mmap=True)
