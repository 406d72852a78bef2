"""DeepSpeed's checkpoint files and its engine as a state that belongs to no engine (``arctic_training.portable``).

Layout, as DeepSpeed 0.19 has it; T elements of a parameter, R ranks:

- Stage 0 keeps a torch optimizer over whole parameters on every rank.
- Stages 1 and 2 lay the parameters of a group end to end and give each rank a stretch of it. Which elements of which
  parameter a rank has stands in ``param_slice_mappings`` of the file, and in ``_hp_mapping`` of a parameter.
- Stage 3 gives rank r the r-th of R equal parts of each parameter, the last filled up, and lays these end to end.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_deepspeed import reading
from arctic_deepspeed.checkpoint_files import DESCRIPTION_FILE, STATE_KEY, TAG
from arctic_training import portable
from arctic_training.errors import CheckpointError
from arctic_training.portable import WEIGHT, PortableState

if TYPE_CHECKING:
    import torch

NAMES = "parameter_names"
"""What the engine calls the names of its optimizer's parameters in what it saves."""


def read_state(path: Path) -> PortableState:
    """The state in a checkpoint of any stage and number of ranks.

    Args:
        path: a complete checkpoint.

    Raises:
        CheckpointError: it cannot be read, or was written before parameters had names in it.
    """
    reading.import_quietly()  # what is unpickled names its classes
    try:
        description = json.loads((path / DESCRIPTION_FILE).read_text("utf-8"))
        ranks, stage = range(description["num_ranks"]), description["zero_stage"]
        folder = path / TAG
        model = reading.mapped(folder / (reading.MODEL_PART.format(rank=0) if stage == 3 else reading.WHOLE_MODEL))
        kept = model[STATE_KEY]
        names = kept[NAMES]
        if stage == 0:
            read, others = portable.from_optimizer(names, model["module"], model["optimizer"], kept["master_weights"])
            return PortableState(names, read, others, kept["scheduler"], kept["scaler"])
        parts = [reading.mapped(reading.optimizer_file(folder, rank)) for rank in ranks]
        shapes = {name: tuple(shape) for group in model["param_shapes"] for name, shape in group.items()}
        readers = {1: _Stretches, 2: _Stretches, 3: _EqualParts}
        read_one: Any = readers[stage](parts, shapes)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"its state cannot be read for another engine, stage or number of ranks: {type(error).__name__}: {error}",
            where=str(path),
            remedy="resume with the engine, stage and ranks that it was written with",
        ) from error
    others = ((name, tensor) for name, tensor in reading.read_model(path) if name not in set(names))
    return PortableState(names, read_one, others, kept["scheduler"], kept["scaler"])


class _Stretches:
    """Reads stages 1 and 2."""

    def __init__(self, parts: Sequence[dict[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.states = [part["optimizer_state_dict"] for part in parts]
        self.shapes = shapes

    def __call__(self, name: str) -> Mapping[str, Any]:
        import torch

        pieces: dict[str, list[torch.Tensor]] = {}
        numbers: dict[str, Any] = {}
        for state in self.states:
            for group, slices in enumerate(state["param_slice_mappings"]):
                if name not in slices:
                    continue
                start, count = slices[name].start, slices[name].numel
                flat = state["single_partition_of_fp32_groups"][group]
                values = {WEIGHT: flat, **state["base_optimizer_state"]["state"].get(group, {})}
                for key, value in values.items():
                    if portable.is_number(value):
                        numbers[key] = value
                    else:
                        pieces.setdefault(key, []).append(value[start : start + count])
        return {**numbers, **{key: torch.cat(found).view(self.shapes[name]) for key, found in pieces.items()}}


class _EqualParts:
    """Reads stage 3."""

    def __init__(self, parts: Sequence[dict[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.states = [part["optimizer_state_dict"] for part in parts]
        self.shapes = shapes
        self.begins: dict[str, int] = {}
        begin = 0
        for name, shape in shapes.items():
            self.begins[name] = begin
            begin += math.ceil(math.prod(shape) / len(parts))

    def __call__(self, name: str) -> Mapping[str, Any]:
        import torch

        shape, begin = self.shapes[name], self.begins[name]
        size = math.prod(shape)
        share = math.ceil(size / len(self.states))
        pieces: dict[str, list[torch.Tensor]] = {}
        numbers: dict[str, Any] = {}
        for state in self.states:
            for key, value in self._of_rank(state, begin, share):
                if portable.is_number(value):
                    numbers[key] = value
                else:
                    pieces.setdefault(key, []).append(value)
        return {**numbers, **{key: torch.cat(found)[:size].view(shape) for key, found in pieces.items()}}

    def _of_rank(self, state: dict[str, Any], begin: int, size: int) -> Iterator[tuple[str, Any]]:
        """The elements ``begin`` to ``begin + size`` of a rank's flat tensors, which follow each other."""
        for number, flat in enumerate(state["fp32_flat_groups"]):
            if begin < flat.numel() and size > 0:
                end = min(begin + size, flat.numel())
                for key, value in {WEIGHT: flat, **state["optimizer_state_dict"]["state"].get(number, {})}.items():
                    yield key, value if portable.is_number(value) else value[begin:end]
                size -= end - begin
            begin = max(0, begin - flat.numel())


def write_partitioned(state: PortableState, engine: Any, model: torch.nn.Module, stage: int) -> None:
    """Go on from a state with an engine of stage 1, 2 or 3.

    Args:
        state: the state.
        engine: DeepSpeed's engine.
        model: its module.
        stage: its ZeRO stage.

    Raises:
        CheckpointError: the state is of another model.
    """
    import torch

    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    portable.check_names(state, parameters)
    place: Callable[..., Any] = _place_in_equal_parts if stage == 3 else _place_in_stretch
    zero = engine.optimizer
    with torch.no_grad():
        for name, parameter in parameters.items():
            values = dict(state.read(name))
            portable.check_shape(name, values[WEIGHT], getattr(parameter, "ds_shape", parameter.shape))
            place(zero, parameter, values)
    if stage < 3:
        portable.put_others(state, model)
    else:
        _put_others_in_parts(zero, state, model)
    steps = state.read(state.names[0]).get("step")
    for group in zero.optimizer.param_groups:
        if "step" in group and steps is not None:  # optimizers of DeepSpeed that count by group
            group["step"] = int(steps)


def _put_others_in_parts(zero: Any, state: PortableState, model: torch.nn.Module) -> None:
    """Load frozen weights into this rank's part of them, and buffers."""
    import torch

    entries = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in state.others:
            entry = entries.get(name)
            if entry is None or tuple(getattr(entry, "ds_shape", entry.shape)) != tuple(tensor.shape):
                continue
            if not hasattr(entry, "ds_tensor"):
                entry.copy_(tensor)
                continue
            share = entry.ds_tensor.numel()
            rank = zero._get_param_partition_rank(entry)
            piece = tensor.reshape(-1)[rank * share : (rank + 1) * share]
            entry.ds_tensor.view(-1)[: piece.numel()].copy_(piece)


def update_model(zero: Any, stage: int) -> None:
    """Put the fp32 weights of an engine of stage 1, 2 or 3 into the model, as its step does. Every rank calls it."""
    import torch

    with torch.no_grad():
        if stage < 3:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()
        for number in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _place_in_stretch(zero: Any, parameter: Any, values: dict[str, Any]) -> None:
    parameter.data.copy_(values[WEIGHT])
    mapping = parameter._hp_mapping
    if mapping is None:  # another rank has it
        return
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
    source, target = mapping.lp_fragment_address, mapping.hp_fragment_address
    for key, value in values.items():
        into = flat if key == WEIGHT else _entry(zero, flat, key, value, parameter.numel())
        if into is not None:
            piece = value.reshape(-1).narrow(0, source.start, source.numel)
            into.data.narrow(0, target.start, target.numel).copy_(piece)


def _place_in_equal_parts(zero: Any, parameter: Any, values: dict[str, Any]) -> None:
    import torch

    group, begin, share = zero.grad_position[zero.get_param_id(parameter)]
    flat = zero.fp32_partitioned_groups_flat[group]
    rank = zero._get_param_partition_rank(parameter)
    for key, value in values.items():
        into = flat if key == WEIGHT else _entry(zero, flat, key, value, parameter.ds_numel)
        if into is None:
            continue
        piece = value.reshape(-1)[rank * share : (rank + 1) * share]
        padded = torch.cat([piece, piece.new_zeros(share - piece.numel())])
        into.data.narrow(0, begin, share).copy_(padded)
        if key == WEIGHT:
            parameter.ds_tensor.data.copy_(padded[: parameter.ds_tensor.numel()])


def _entry(zero: Any, flat: torch.Tensor, key: str, value: Any, count: int) -> torch.Tensor | None:
    """The flat tensor of one entry of the optimizer's state, made where it is not there yet; None for a number, which
    is put in its place."""
    import torch

    entries = zero.optimizer.state[flat]
    if portable.is_number(value):
        entries[key] = value.clone() if hasattr(value, "clone") else value
        return None
    portable.check_elements(key, value, count)
    if key not in entries:
        entries[key] = torch.zeros_like(flat.data)
    return entries[key]
