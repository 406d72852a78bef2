"""What training goes on from in a form that belongs to no engine: each trained parameter whole, and its moments.

So a checkpoint can be continued by another engine, with another ZeRO stage, precision or number of ranks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    import torch

WEIGHT = "weight"
GROUPS = "parameter_groups"
"""What an engine's layout calls ``groups_digest``."""


@attrs.frozen(eq=False)
class PortableState:
    """The state of a training, read parameter by parameter.

    Attributes:
        names: of the trained parameters.
        read: from a name to ``weight`` (fp32, of the parameter's shape) and what the optimizer keeps for it: tensors of
            the same shape, and numbers such as ``step``.
        others: what else the model holds, frozen weights and buffers, by name.
        scheduler: its state.
        scaler: that of the loss scaler.
    """

    names: Sequence[str]
    read: Callable[[str], Mapping[str, Any]]
    others: Iterable[tuple[str, torch.Tensor]]
    scheduler: dict[str, Any]
    scaler: dict[str, Any]


def parameter_names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The names of an optimizer's parameters in the order in which its state numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def groups_digest(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Which parameters an optimizer has in which of its groups, so that state kept by number finds its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()[:12]


def from_optimizer(
    names: Sequence[str], model: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any], masters: Sequence[Any]
) -> tuple[Callable[[str], Mapping[str, Any]], Iterable[tuple[str, torch.Tensor]]]:
    """How to read a state in which an optimizer of torch holds whole parameters.

    Args:
        names: of its parameters in their order.
        model: the model's state.
        optimizer: its state.
        masters: fp32 weights of those parameters that the model holds in 16 bits, in their order.

    Returns:
        ``read`` and ``others`` of a ``PortableState``.
    """
    import torch

    halves = [name for name in names if model[name].dtype in (torch.bfloat16, torch.float16)]
    weights = dict(zip(halves, masters, strict=False))
    number_of = {name: number for number, name in enumerate(names)}

    def read(name: str) -> Mapping[str, Any]:
        return {WEIGHT: weights.get(name, model[name]).float(), **optimizer["state"].get(number_of[name], {})}

    return read, ((name, tensor) for name, tensor in model.items() if name not in number_of)


def put_into_optimizer(
    state: PortableState,
    model: torch.nn.Module,
    names: Sequence[str],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Go on from a state with an optimizer of torch that holds whole parameters or fp32 copies of them.

    Args:
        state: the state.
        model: the model.
        names: of the optimizer's parameters in their order.
        optimizer: the optimizer; its parameters are the model's or their copies.
    """
    import torch

    check_names(state, names)
    parameters = dict(model.named_parameters())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with torch.no_grad():
        for name, parameter in zip(names, held, strict=True):
            values = dict(state.read(name))
            weight = values.pop(WEIGHT)
            check_shape(name, weight, parameters[name].shape)
            parameter.copy_(weight)
            if parameter is not parameters[name]:
                parameters[name].copy_(weight)
            if values:
                optimizer.state[parameter] = {key: _like(value, parameter) for key, value in values.items()}
    put_others(state, model)


def put_others(state: PortableState, model: torch.nn.Module) -> None:
    """Load frozen weights and buffers."""
    import torch

    entries = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in state.others:
            if name in entries and entries[name].shape == tensor.shape:
                entries[name].copy_(tensor)


def check_names(state: PortableState, names: Iterable[str]) -> None:
    """Refuse a state of another model.

    Raises:
        CheckpointError: other parameters are trained here.
    """
    here, there = set(names), set(state.names)
    if here != there:
        odd = sorted(here ^ there)
        raise CheckpointError(
            f"the checkpoint trains other parameters than this run: {', '.join(odd[:3])}"
            + (f" and {len(odd) - 3} more" if len(odd) > 3 else ""),
            remedy="resume with the model section that the checkpoint was written with",
        )


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int]) -> None:
    """Refuse a parameter of another shape.

    Raises:
        CheckpointError: it has another shape here.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise CheckpointError(
            f"{name} has the shape {tuple(tensor.shape)} in the checkpoint and {tuple(shape)} here",
            remedy="resume with the model section that the checkpoint was written with",
        )


def is_number(value: Any) -> bool:
    """Whether an entry of an optimizer's state is one number, such as its count of steps, and not one an element."""
    return getattr(value, "ndim", 0) == 0


def check_elements(key: str, value: torch.Tensor, count: int) -> None:
    """Refuse what an optimizer keeps in another shape than its parameter's.

    Raises:
        CheckpointError: so it is.
    """
    if value.numel() != count:
        raise CheckpointError(
            f"the optimizer keeps {key} in the shape {tuple(value.shape)}, which no other engine can take",
            remedy="resume with the engine, stage and ranks that the checkpoint was written with",
        )


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """A value of an optimizer's state where torch would have it: elements beside their parameter, numbers and what has
    a shape of its own, such as means of rows, as they are."""
    if is_number(value):
        return value.clone() if hasattr(value, "clone") else value
    if value.numel() != parameter.numel() or not value.is_floating_point():
        return value.detach().to(device=parameter.device, copy=True)
    return value.detach().to(device=parameter.device, dtype=parameter.dtype, copy=True).view(parameter.shape)
