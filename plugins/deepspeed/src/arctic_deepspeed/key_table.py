"""The keys of DeepSpeed's configuration, taken from DeepSpeed itself: the table that recipes are checked against.

A recipe is checked without importing DeepSpeed, against the table that ships as ``deepspeed_keys.json``; write it anew
with ``python -m arctic_deepspeed.key_table``. A table maps each key to a list of types in words, or to a table for a
section.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

Table = dict[str, Any]
TABLE_FILE = Path(__file__).with_name("deepspeed_keys.json")
NULL = "null"
WORDS = {
    bool: "bool",
    int: "int",
    float: "number",
    str: "text",
    type(None): NULL,
    Path: "text",
    list: "list",
    dict: "mapping",
}


@cache
def shipped() -> Table:
    """The table that ships with this distribution: ``version``, ``keys`` and ``removed`` (key -> why)."""
    return json.loads(TABLE_FILE.read_text("utf-8"))


def installed() -> Table:
    """The same for the DeepSpeed that is installed; imports it."""
    from arctic_deepspeed.process import import_without_compiling

    deepspeed = import_without_compiling()
    from deepspeed.runtime import config as runtime_config

    removed = {
        **getattr(runtime_config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", {}),
        **{f"zero_optimization.{k}": v for k, v in getattr(runtime_config, "_REMOVED_ZERO_CONFIG_KEYS", {}).items()},
    }
    keys = _recorded_keys()
    for name, model in _section_models().items():
        keys[name] = _keys_of_model(model)
    keys["timers"] = {"throughput": keys.pop("timers.throughput")}
    return {
        "version": deepspeed.__version__,
        "keys": {name: keys[name] for name in sorted(keys) if name not in removed},
        "removed": {name: text.split(". ")[0] for name, text in sorted(removed.items())},
    }


def _section_models() -> dict[str, type]:
    """The sections that DeepSpeed declares as pydantic models and that a recipe may have."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
        "comet": monitor.CometConfig,
        "comms_logger": CommsLoggerConfig,
        "csv_monitor": monitor.CSVConfig,
        "fp16": DeepSpeedFP16Config,
        "tensorboard": monitor.TensorBoardConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "wandb": monitor.WandbConfig,
        "zero_optimization": DeepSpeedZeroConfig,
    }


def _keys_of_model(model: Any) -> Table:
    """The keys of a pydantic model or a dataclass, aliases too."""
    if dataclasses.is_dataclass(model):
        hints = typing.get_type_hints(model)
        return {field.name: _words_of(hints[field.name]) for field in dataclasses.fields(model)}
    keys: Table = {}
    for name, field in model.model_fields.items():
        words = _words_of(field.annotation)
        for spelling in (name, field.alias):
            if spelling:
                keys[spelling] = words
    return {name: keys[name] for name in sorted(keys)}


def _words_of(annotation: Any) -> Any:
    """A type as the table has it: a list of words, or a table for a section."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [_words_of(member) for member in typing.get_args(annotation)]
        sections = [member for member in members if isinstance(member, dict)]
        return sections[0] if sections else sorted({word for member in members for word in member})
    if origin is typing.Literal:
        return [f"={choice}" for choice in typing.get_args(annotation)]
    if origin is typing.Annotated:
        return _words_of(typing.get_args(annotation)[0])
    kind = origin or annotation
    if not isinstance(kind, type):
        return ["any"]
    if issubclass(kind, enum.Enum):
        return [f"={member.value}" for member in kind]
    if hasattr(kind, "model_fields") or dataclasses.is_dataclass(kind):
        return _keys_of_model(kind)
    return [next((word for known, word in WORDS.items() if issubclass(kind, known)), "any")]


def _recorded_keys() -> Table:
    """The keys that DeepSpeed has declared nowhere, found by watching it read a configuration."""
    from deepspeed.runtime.config import DeepSpeedConfig

    keys: Table = {}
    sections = {
        name: _Watched({}, keys.setdefault(name, {})) for name in ("aio", "checkpoint", "data_types", "flops_profiler")
    }
    DeepSpeedConfig(_Watched({"train_batch_size": 1, **sections}, keys))
    # Read elsewhere than where the configuration is parsed.
    keys.setdefault("sequence_parallel_size", ["int"])
    keys.setdefault("data_parallel_size", ["int"])
    for name in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "steps_per_print",
    ):
        keys[name] = ["int"]
    for name in ("gradient_clipping", "gradient_predivide_factor"):
        keys[name] = ["number"]
    for name in ("communication_data_type", "seq_parallel_communication_data_type"):
        keys[name] = ["=bf16", "=fp16", "=fp32"]
    keys["gradient_allreduce_op"] = ["=mean", "=sum"]
    keys["data_types"]["keep_in_fp32_modules"] = ["any"]
    return keys


class _Watched(dict):
    """A configuration that notes which keys are looked up, and the type of the default that stands for an absent
    one."""

    def __init__(self, values: dict, noted: Table) -> None:
        super().__init__(values)
        self.noted = noted

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key, default)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._note(key, None)
        return super().__contains__(key)

    def keys(self) -> Any:
        return self  # DeepSpeed asks `name in config.keys()`

    def __copy__(self) -> _Watched:
        return _Watched(self, self.noted)

    def _note(self, key: Any, default: Any) -> None:
        known = next((word for kind, word in WORDS.items() if type(default) is kind), "any")
        word = "any" if known in (NULL, "mapping", "list") else known
        if self.noted.get(key, ["any"]) == ["any"]:
            self.noted[key] = [word]


if __name__ == "__main__":
    TABLE_FILE.write_text(json.dumps(installed(), indent=1, sort_keys=True) + "\n", "utf-8")
    sys.stdout.write(f"{TABLE_FILE}\n")
