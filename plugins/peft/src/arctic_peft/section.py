"""What a recipe's ``peft_config`` may say: kinds of adapters by any of their names, and the keys of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from arctic_training.config import Config, KeyProblem, walk
from arctic_training.human_numbers import parse_number
from arctic_training.wording import described, described_value, found, nearest

KEY = "peft_config"
TABLE_FILE = Path(__file__).with_name("peft_keys.json")
SHORTHANDS: dict[str, dict[str, Any]] = {
    "DORA": {"use_dora": True},
    "RSLORA": {"use_rslora": True},
    "PISSA": {"init_lora_weights": "pissa"},
    "OLORA": {"init_lora_weights": "olora"},
}
"""Kinds that are LoRA with a key set."""
UNFIT = {
    "ADALORA": "it divides its ranks anew from the gradients of every step, which no engine keeps",
    "POLY": "it needs the number of a task with every row",
    "XLORA": "it mixes adapters that are trained already",
}
DATA_INITIALISED = ("corda", "eva", "lora_ga")
"""Ways to begin LoRA that look at rows of data first."""
RANGES = {"r": (1, float("inf"), "above 0"), "dropout": (0, 1, "from 0 to 1")}  # by the last word of a key
_TYPES = {"bool": bool, "int": int, "number": float, "text": str, "list": list, "null": type(None)}


@cache
def shipped() -> dict[str, Any]:
    """The kinds of adapters that peft knows, and the keys of each with their types in words; ``null`` in place of the
    keys of those that learn virtual tokens."""
    return json.loads(TABLE_FILE.read_text("utf-8"))


def adapted_sections(config: Config) -> Iterator[tuple[tuple, Any]]:
    """The sections of a recipe that ask for an adapter, with their paths."""
    for path, info, value in walk(config):
        if info.name == KEY and value:
            section: Any = config
            for part in path[:-1]:
                section = section[part] if isinstance(part, int) else getattr(section, part)
            yield path[:-1], section


def kind_and_keys(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name that peft has for a kind, and what its config class is given; numbers as such."""
    name = str(given.get("peft_type", "")).upper()
    kind = "LORA" if name in SHORTHANDS else name
    words = shipped()["types"].get(kind) or {}
    keys = {key: _number(value, words.get(key, ())) for key, value in given.items() if key != "peft_type"}
    return kind, {**SHORTHANDS.get(name, {}), **keys}


def problems(config: Config) -> Iterator[KeyProblem]:
    """What is wrong with the adapters of a resolved recipe. Pure."""
    for path, section in adapted_sections(config):
        if getattr(section, "init", "pretrained") == "random":
            message = "an adapter is trained beside weights that can be had again, and these are drawn at random"
            yield KeyProblem((*path, "init"), message, remedy="name a model with weights, or leave peft_config out")
        yield from _of_adapter((*path, KEY), getattr(section, KEY))


def _of_adapter(path: tuple, given: Mapping[str, Any]) -> Iterator[KeyProblem]:
    types = shipped()["types"]
    names = [*types, *SHORTHANDS]
    if "peft_type" not in given:
        yield KeyProblem(path, "needs peft_type, the kind of adapter", remedy=f"one of {', '.join(sorted(names))}")
        return
    name = str(given["peft_type"]).upper()
    kind, keys = kind_and_keys(given)
    if kind not in types:
        remedy = nearest(name, names) or f"there are {', '.join(sorted(names))}"
        yield KeyProblem((*path, "peft_type"), f"peft has no {given['peft_type']!r}", remedy=remedy)
        return
    virtual = "it learns virtual tokens, which shift every row against its labels" if types[kind] is None else ""
    if reason := virtual or UNFIT.get(kind):
        yield KeyProblem((*path, "peft_type"), f"{name} cannot be trained here: {reason}", remedy="use LoRA")
        return
    for key, value in keys.items():
        words = types[kind].get(key)
        if words is None and key in given:
            hint = nearest(key, types[kind]) or f"its keys are {', '.join(types[kind])}"
            yield KeyProblem((*path, key), f"{name} has no key {key!r}", of="key", remedy=hint)
        elif words is not None and not any(_is(value, word) for word in words):
            expected = " or ".join(described(_TYPES[word]) for word in words)
            yield KeyProblem((*path, key), f"expected {expected}, found {found(value)}")
        elif value is not None and (reach := RANGES.get(key.rpartition("_")[2])) and not reach[0] <= value <= reach[1]:
            yield KeyProblem((*path, key), f"expected a number {reach[2]}, found {found(value)}")
    for key, value in SHORTHANDS.get(name, {}).items():
        if keys[key] != value:
            yield KeyProblem((*path, key), f"{name} is LoRA with {key}: {described_value(value)}", remedy="use LORA")
    if kind == "LORA" and keys.get("init_lora_weights") in DATA_INITIALISED:
        message = f"{keys['init_lora_weights']!r} begins with rows of data, which are not there when a model is built"
        yield KeyProblem((*path, "init_lora_weights"), message, remedy="use true, pissa or olora")


def _is(value: Any, word: str) -> bool:
    if word in ("int", "number"):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (word == "number" or float(value).is_integer())
    return word == "any" or isinstance(value, _TYPES[word])


def _number(value: Any, words: Any) -> Any:
    """A number where one is meant, which may be written as 2^4 or 1k."""
    if not isinstance(value, (str, float)) or not {"int", "number"} & set(words) or {"any", "text"} & set(words):
        return value
    try:
        return parse_number(value, whole="number" not in words)
    except ValueError:
        return value
