"""Checking of the recipe's ``deepspeed:`` section without DeepSpeed: every key known, every value of its type.

DeepSpeed itself accepts an unknown key at the top level in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from arctic_deepspeed.key_table import NULL, Table, shipped
from arctic_training.config import FreeConfig, KeyProblem
from arctic_training.wording import found, nearest

AUTO = "auto"
"""A value that means the same as leaving the key out."""

OURS = {
    "optimizer": "use the recipe's own section: optimizer",
    "scheduler": "use the recipe's own section: scheduler",
    "activation_checkpointing": "set model.disable_activation_checkpoint",
    "torch_autocast": "set model.dtype",
    "data_efficiency": "the data section says how data is loaded",
    "dataloader_drop_last": "set data.drop_last",
    "sequence_parallel_size": "set sequence_parallel_size at the top of the recipe",
    "data_parallel_size": "it follows from the number of ranks",
    "managed_gradient_accumulation": "set gradient_accumulation_steps at the top of the recipe",
    "datastates_ckpt": "the checkpoint section says what is saved",
    "checkpoint.writer": "the checkpoint section says what is saved",
    "checkpoint.load_universal": "the checkpoint section says what is loaded",
    "checkpoint.use_node_local_storage": "a checkpoint is one directory that every rank reaches",
}
"""Keys of DeepSpeed's that mean something the recipe says elsewhere, and where."""

WITHOUT_EFFECT = (
    "autotuning",
    "compile",
    "expert_parallel",
    "hybrid_engine",
    "pipeline",
    "tensor_parallel",
    "use_data_before_expert_parallelism",
    "weight_quantization",
    "zero_optimization.zenflow",
)
"""Keys of features that Arctic's engine does not drive."""

WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "text": "text",
    "list": "a list",
    "mapping": "a mapping",
    NULL: "null",
}


class DeepSpeedSection(FreeConfig):
    """DeepSpeed's own configuration, as ``deepspeed.initialize`` takes it; what it leaves out is completed."""

    @classmethod
    def structure_free(cls, mapping: Mapping[str, Any]) -> tuple[dict[str, Any], list[KeyProblem]]:
        table = shipped()
        return _tidied(mapping), list(check(mapping, table["keys"], table["removed"]))

    @classmethod
    def contradictions(cls, value: Mapping[str, Any], config: Any) -> list[KeyProblem]:
        from arctic_deepspeed.ds_config import RunFacts, contradictions

        facts = RunFacts(config.micro_batch_size, config.gradient_accumulation_steps, None, config.model.precision)
        return contradictions(value, facts)

    @classmethod
    def known_keys(cls) -> list[str]:
        return [name for name in shipped()["keys"] if name not in OURS and name not in WITHOUT_EFFECT]


def check(
    mapping: Mapping[str, Any], keys: Table, removed: Mapping[str, str], path: tuple[str, ...] = ()
) -> Iterator[KeyProblem]:
    """What is wrong with a section and with those inside it.

    Args:
        mapping: the section.
        keys: the table of its keys.
        removed: keys that DeepSpeed had and has no more, and what became of them.
        path: where the section stands.
    """
    for name, value in mapping.items():
        here = (*path, name)
        dotted = ".".join(str(part) for part in here)
        if dotted in OURS:
            yield KeyProblem(here, "is not taken from here", of="key", remedy=OURS[dotted])
        elif dotted in WITHOUT_EFFECT:
            yield KeyProblem(here, "would have no effect: Arctic does not drive this feature of DeepSpeed's", of="key")
        elif name not in keys:
            yield KeyProblem(here, removed.get(dotted, "unknown key"), of="key", remedy=nearest(name, keys))
        elif value is None or value == AUTO:
            continue
        elif isinstance(keys[name], Mapping):
            if isinstance(value, Mapping):
                yield from check(value, keys[name], removed, here)
            else:
                yield KeyProblem(here, f"expected a mapping, found {found(value)}")
        elif not any(_is(value, word) for word in keys[name]):
            yield KeyProblem(
                here, f"expected {_described(keys[name])}, found {found(value)}", remedy=_near(value, keys[name])
            )


def _is(value: Any, word: str) -> bool:
    """Whether a value is what a word of the table says."""
    if word.startswith("="):
        return not isinstance(value, bool) and str(value) == word[1:]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {
        "any": True,
        "bool": isinstance(value, bool),
        "int": is_number and float(value).is_integer(),
        "number": is_number,
        "text": isinstance(value, str),
        "list": isinstance(value, (list, tuple)),
        "mapping": isinstance(value, Mapping),
        NULL: value is None,
    }[word]


def _described(words: list[str]) -> str:
    choices = [word[1:] for word in words if word.startswith("=")]
    if choices:
        return f"one of {', '.join(choices)}"
    return " or ".join(WORDS[word] for word in sorted(words, key=lambda word: word == NULL))


def _near(value: Any, words: list[str]) -> str:
    return nearest(value, [word[1:] for word in words if word.startswith("=")]) if isinstance(value, str) else ""


def _tidied(value: Any) -> Any:
    """A copy without what means the same as being absent, and with whole numbers as such: DeepSpeed compares some of
    them."""
    if isinstance(value, Mapping):
        return {name: _tidied(item) for name, item in value.items() if item is not None and item != AUTO}
    if isinstance(value, (list, tuple)):
        return [_tidied(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 1e3 else value
