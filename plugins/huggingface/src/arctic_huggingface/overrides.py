"""``hf_config_kwargs``: keys of an architecture's configuration that the recipe sets anew.

A configuration takes any attribute in silence and derives some values from others when it is made. So overrides are
checked against the keys it has, and it is made again from its file with them in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from arctic_training.wording import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

ROPE_KEYS = ("rope_theta", "rope_scaling")
"""Older names of what stands in ``rope_parameters``."""


def unknown_overrides(
    config: PretrainedConfig, overrides: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """The overrides that the configuration has no key for: path, message, remedy."""
    from transformers import PretrainedConfig

    known = {name for name in {**config.to_dict(), **vars(config)} if not name.startswith("_")}
    known |= set(config.attribute_map)
    if _rope_of(config) is not None:
        known |= set(ROPE_KEYS)
    for name, value in overrides.items():
        if name not in known:
            hint = nearest(name, known) or f"its keys are {', '.join(sorted(known))}"
            yield (*path, name), f"{type(config).__name__} has no key {name!r}", hint
        inner = getattr(config, name, None)
        if isinstance(inner, PretrainedConfig) and isinstance(value, Mapping):
            yield from unknown_overrides(inner, value, (*path, name))


def overridden(config: PretrainedConfig, content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a configuration's file with overrides in place.

    Args:
        config: the configuration made of the file as it is.
        content: the file.
        overrides: keys that it knows.
    """
    from transformers import PretrainedConfig

    result = {**content}
    for name, value in overrides.items():
        if name in ROPE_KEYS or name == "rope_parameters":
            continue
        old, inner = content.get(name), getattr(config, name, None)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            is_section = isinstance(inner, PretrainedConfig)
            value = overridden(inner, old, value) if is_section else {**old, **value}
        result[name] = value
    if {*ROPE_KEYS, "rope_parameters"} & set(overrides):
        for name in ROPE_KEYS:
            result.pop(name, None)
        result["rope_parameters"] = _rope_with(config, overrides)
    layers = overrides.get("num_hidden_layers")
    if layers is not None and "layer_types" not in overrides and "layer_types" in result:
        types = result.pop("layer_types") or []
        if len(types) >= layers:  # otherwise the architecture says what further layers are
            result["layer_types"] = types[:layers]
    return result


def _rope_of(config: PretrainedConfig) -> dict[str, Any] | None:
    """The rotary settings, unless the architecture has none or has them for each type of layer."""
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or any(isinstance(value, Mapping) for value in rope.values()):
        return None
    return rope


def _rope_with(config: PretrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    old = _rope_of(config)
    if old is None:
        return dict(overrides["rope_parameters"])
    new = old
    for name in ("rope_scaling", "rope_parameters"):
        if name in overrides:
            new = overrides[name] or {"rope_type": "default"}
    theta = overrides.get("rope_theta", new.get("rope_theta", old.get("rope_theta")))
    return {**new, "rope_theta": theta}
