"""The kinds of adapters that peft knows and the keys of each, taken from peft itself: what recipes are checked against.

A recipe is checked without importing peft, against the table that ships as ``peft_keys.json``; write it anew with
``python -m arctic_peft.key_table``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from functools import cache
from pathlib import Path
from typing import Any

TABLE_FILE = Path(__file__).with_name("peft_keys.json")
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


@cache
def shipped() -> dict[str, Any]:
    """The table that ships with this distribution: ``version``, and ``types``: the keys of each with their types in
    words. Kinds that learn virtual tokens have ``null`` in place of keys."""
    return json.loads(TABLE_FILE.read_text("utf-8"))


def installed() -> dict[str, Any]:
    """The same for the peft that is installed; imports it."""
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
    return {WORDS.get(annotation, "any")}


if __name__ == "__main__":
    TABLE_FILE.write_text(json.dumps(installed(), indent=1, sort_keys=True) + "\n", "utf-8")
    sys.stdout.write(f"{TABLE_FILE}\n")
