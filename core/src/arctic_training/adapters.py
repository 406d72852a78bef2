"""Models that are trained beside a base which can be built again, such as those with adapters.

Such a model carries an ``Adapter``. Its checkpoints then leave out the frozen weights, which building the base gives
anew; one that carries none is kept whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    import torch

ATTRIBUTE = "arctic_adapter"
SAMPLED_PARAMETERS = 16
SAMPLED_VALUES = 4096


@attrs.frozen
class Adapter:
    """What a model says of the adapter that it trains; all of it can be written as JSON.

    Attributes:
        base: name or folder of the base model.
        revision: the revision of the base, where the recipe or the hub names one.
        precision: of the base's weights: bf16, fp16 or fp32.
        fingerprint: marks the weights of the base in this precision; another base has another one.
        config: the content of ``adapter_config.json`` as peft has it.
        names: from the names of weights in the model's state to their names in ``adapter_model.safetensors``.
        new_rows: of the base's embeddings, which its files do not have: each is the mean of those before the first.
    """

    base: str
    revision: str | None
    precision: str
    fingerprint: str
    config: Mapping[str, Any]
    names: Mapping[str, str]
    new_rows: Sequence[int] = ()


def set_adapter(model: torch.nn.Module, adapter: Adapter) -> None:
    """Say of a model that it trains an adapter beside a base that can be built again."""
    setattr(model, ATTRIBUTE, adapter)


def adapter_of(model: Any) -> Adapter | None:
    """The adapter that a model trains; None of one that is trained itself."""
    return getattr(model, ATTRIBUTE, None)


def kept_state(model: torch.nn.Module, *, keep_vars: bool = False) -> dict[str, torch.Tensor]:
    """The entries of a model's state that a checkpoint holds: all of them, or without the frozen weights of a base."""
    state = model.state_dict(keep_vars=keep_vars)
    left_out = names_left_out(model, state)
    return {name: tensor for name, tensor in state.items() if name not in left_out}


def names_left_out(model: torch.nn.Module, state: Mapping[str, Any]) -> set[str]:
    """The entries of a model's state that its base gives again: frozen parameters that are no part of the adapter, and
    what belongs to one alone, such as the scales of one that is quantized."""
    adapter = adapter_of(model)
    if adapter is None:
        return set()
    frozen = {
        name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad
    } - adapter.names.keys()
    return {name for name in state if any(part in frozen for part in _beginnings(name))}


def load_kept(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Load what ``kept_state`` gave.

    Raises:
        RuntimeError: the entries are not those that this model keeps, or of other shapes.
    """
    expected = model.state_dict(keep_vars=True)
    expected_names = expected.keys() - names_left_out(model, expected)
    odd = sorted(expected_names ^ state.keys())
    if odd:
        others = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise RuntimeError(f"one of them has no {', '.join(odd[:3])}{others}")
    model.load_state_dict(state, strict=False)


def fingerprint(
    model: torch.nn.Module,
    trained_anew: Collection[str] = (),
    gathered: Callable[[torch.nn.Parameter], AbstractContextManager] = nullcontext,
) -> str:
    """What marks the weights of a base model in their precision: a sha256 over values all over some of its parameters.

    Args:
        model: the base, without an adapter. Every rank calls it.
        trained_anew: modules that are saved with the adapter, so that those of the base mean nothing.
        gathered: makes a partitioned parameter whole.
    """
    import torch

    digest = hashlib.sha256()
    parameters = sorted(
        (item for item in model.named_parameters() if not set(trained_anew) & set(item[0].split("."))),
        key=lambda item: item[0],
    )
    for number in _spread(len(parameters), SAMPLED_PARAMETERS):
        name, parameter = parameters[number]
        with torch.no_grad(), gathered(parameter):
            values = parameter.detach().reshape(-1)
            values = values[torch.tensor(_spread(len(values), SAMPLED_VALUES), device=values.device)]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trained_shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """The shapes of what is trained beside the base, by name; also of parameters that ZeRO-3 divides among ranks."""
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in trained}


def _spread(size: int, most: int) -> list[int]:
    """At most so many of the numbers below ``size``, evenly over all of them, the last among them."""
    count = min(size, most)
    return [size - 1 - number * size // count for number in range(count)]


def _beginnings(name: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
