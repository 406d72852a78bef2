"""The kinds of adapters that the peft that is installed knows, and the keys of each: the table that recipes are
checked against. ``python plugins/peft/tests/peft_table.py`` writes it anew."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from typing import Any

from arctic_peft.section import TABLE_FILE

WORDS = {bool: "bool", int: "int", float: "number", str: "text", type(None): "null"}
NOT_ASKED = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
)
"""Keys that peft or Arctic sets."""


def installed() -> dict[str, Any]:
    """``version``, and ``types``: the keys of each with their types in words; none of virtual tokens."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kinds = {getattr(kind, "value", kind): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    types_of = {
        kind: None if issubclass(config, peft.PromptLearningConfig) else _keys(config) for kind, config in kinds.items()
    }
    return {"version": peft.__version__, "types": dict(sorted(types_of.items()))}


def _keys(config: Any) -> dict[str, list[str]]:
    hints = typing.get_type_hints(config)
    names = sorted(field.name for field in dataclasses.fields(config) if field.init and field.name not in NOT_ASKED)
    return {name: sorted(_words(hints[name])) for name in names}


def _words(annotation: Any) -> set[str]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return {word for member in typing.get_args(annotation) for word in _words(member)}
    if typing.get_origin(annotation) is list:
        return {"list"}
    return {WORDS.get(annotation, "any")}


if __name__ == "__main__":
    TABLE_FILE.write_text(json.dumps(installed(), indent=1, sort_keys=True) + "\n", "utf-8")
    sys.stdout.write(f"{TABLE_FILE}\n")
