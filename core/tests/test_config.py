"""Config classes: what a section may declare, and what structuring makes of a mapping."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from arctic_training.config import ComponentConfig, Config, key, keys_of
from arctic_training.errors import PluginError, RecipeError
from arctic_training.recipe import load_recipe
from arctic_training.structuring import Structurer


class Color(enum.Enum):
    RED = "red"


class InnerConfig(Config):
    depth: int = key(1, ge=1, le=9, doc="How deep.")
    name: str | None = None


class EntryConfig(ComponentConfig):
    kind: ClassVar[str] = "entry"
    may_stand_alone: ClassVar[bool] = True
    size: int = 1

    @classmethod
    def from_shorthand(cls, value: Any, place: Any) -> Mapping[str, Any]:
        if not isinstance(value, str):
            raise ValueError("expected text or a mapping")
        return {"size": value}


class OuterConfig(Config):
    rate: float = key(5e-4, gt=0, aliases=("lr",), doc="How fast.")
    steps: int = key(0, ge=0)
    betas: tuple[float, float] = key((0.9, 0.999), ge=0, lt=1)
    flag: bool = False
    precision: Literal["bf16", "fp32"] = "bf16"
    automatic: bool | Literal["auto"] = False
    ranks: list[int] | Literal["*"] = "*"
    profile: Literal["step", "e2e"] | None = None
    folder: Path = Path("here")
    title: str = "none"
    names: list[str] = []
    extra: dict[str, Any] = key(factory=dict)
    limits: dict[str, int] = key(factory=dict)
    color: Color = Color.RED
    inner: InnerConfig = key(factory=InnerConfig)
    maybe: InnerConfig | None = None
    entries: list[EntryConfig] = key(factory=list)
    old: int | None = key(None, deprecated="remove it")

    def check(self):
        if self.flag and self.steps == 13:
            yield "steps", "13 contradicts flag"


class NeedyConfig(Config):
    needed: str = key(doc="Wanted.")
    section: OuterConfig = key(factory=OuterConfig)


def structure(data: dict[str, Any], config_class: type[Config] = OuterConfig, overrides: tuple[str, ...] = ()) -> Any:
    recipe = load_recipe(data, overrides)
    structurer = Structurer(recipe)
    config = structurer.structure(recipe.data, config_class)
    structurer.finish()
    return config


def problems(
    data: dict[str, Any], config_class: type[Config] = OuterConfig, overrides: tuple[str, ...] = ()
) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        structure(data, config_class, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_every_key_takes_its_default():
    assert structure({}) == OuterConfig()


def test_values_become_the_types_of_their_keys():
    config = structure(
        {
            "rate": "3e-4",
            "steps": "1.5k",
            "betas": ["90%", 0.5],
            "flag": True,
            "automatic": "auto",
            "ranks": [0, "1"],
            "folder": "x/y",
            "limits": {"a": "2^3"},
            "color": "red",
            "inner": {"depth": 2, "name": "n"},
            "maybe": {"depth": 3},
            "extra": {"a": {"b": "1k"}},
        }
    )
    assert (config.rate, config.steps, config.betas) == (3e-4, 1500, (0.9, 0.5))
    assert (config.automatic, config.ranks, config.folder) == ("auto", [0, 1], Path("x/y"))
    assert (config.limits, config.color, config.inner) == ({"a": 8}, Color.RED, InnerConfig(depth=2, name="n"))
    assert config.maybe == InnerConfig(depth=3)
    assert config.extra == {"a": {"b": "1k"}}
    assert isinstance(config.steps, int)


def test_a_section_remembers_which_keys_were_given():
    config = structure({"lr": 1, "inner": {"depth": 1}})
    assert config.given == {"rate", "inner"}
    assert config.inner.given == {"depth"}
    assert config.maybe is None
    assert OuterConfig().given == frozenset()


def test_defaults_are_not_shared_between_sections():
    first, second = structure({}), structure({})
    first.names.append("x")
    first.extra["x"] = 1
    assert (second.names, second.extra, OuterConfig().names) == ([], {}, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rat": 1}, "rat: unknown key; did you mean 'rate'?"),
        ({"inner": {"dpeth": 1}}, "inner.dpeth: unknown key; did you mean 'depth'?"),
        ({"inner": {"zzz": 1}}, "inner.zzz: unknown key; the keys are depth, name"),
        ({"entries": [{"sizee": 1}]}, "entries.0.sizee: unknown key; did you mean 'size'?"),
        ({"maybe": {"dpeth": 1}}, "maybe.dpeth: unknown key; did you mean 'depth'?"),
        ({1: 2}, "1: unknown key"),
        ({"rate": "fast"}, "rate: expected a number, found 'fast'"),
        ({"rate": True}, "rate: expected a number, found true"),
        ({"rate": None}, "rate: expected a number, found null"),
        ({"rate": [1]}, "rate: expected a number, found a list"),
        ({"rate": 0}, "rate: expected a number above 0, found the number 0"),
        ({"rate": float("nan")}, "rate: expected a number above 0, found"),
        ({"lr": 0}, "lr: expected a number above 0"),
        ({"steps": 1.5}, "steps: expected a whole number, found 1.5"),
        ({"steps": -1}, "steps: expected a whole number of at least 0"),
        ({"inner": {"depth": 10}}, "inner.depth: expected a whole number of at least 1 and of at most 9"),
        ({"betas": [0.9]}, "betas: expected a list of 2, found a list of 1"),
        ({"betas": [0.9, 1]}, "betas.1: expected numbers of at least 0 and below 1, found the number 1"),
        ({"betas": [0.9, "x"]}, "betas.1: expected a number, found 'x'"),
        ({"flag": "yes"}, "flag: expected true or false, found the text 'yes'"),
        ({"flag": 1}, "flag: expected true or false, found the number 1"),
        (
            {"precision": "bf61"},
            "precision: expected one of 'bf16', 'fp32', found the text 'bf61'; did you mean 'bf16'?",
        ),
        ({"automatic": "atuo"}, "automatic: expected true or false or 'auto', found the text 'atuo'"),
        ({"ranks": "all"}, "ranks: expected a list or '*', found the text 'all'"),
        ({"ranks": [0, "x"]}, "ranks.1: expected a whole number, found 'x'"),
        ({"profile": "stp"}, "profile: expected one of 'step', 'e2e' or null, found the text 'stp'"),
        ({"title": 5}, "title: expected text, found the number 5; put it in quotes"),
        ({"title": None}, "title: expected text, found null"),
        ({"folder": 5}, "folder: expected a path"),
        ({"names": "x"}, "names: expected a list, found the text 'x'"),
        ({"names": {"a": 1}}, "names: expected a list, found a mapping"),
        ({"extra": [1]}, "extra: expected a mapping, found a list"),
        ({"limits": {"a": "b"}}, "limits.a: expected a whole number, found 'b'"),
        ({"limits": {1: 2}}, "limits.1: expected text for a key, found the number 1"),
        ({"color": "blue"}, "color: expected Color, found the text 'blue'"),
        ({"inner": "x"}, "inner: expected a mapping, found the text 'x'"),
        ({"inner": [1]}, "inner: expected a mapping, found a list"),
        ({"maybe": 5}, "maybe: expected a mapping or null, found the number 5"),
        ({"entries": [5]}, "entries.0: expected text or a mapping, found the number 5"),
        ({"entries": ["big"]}, "entries.0.size: expected a whole number, found 'big'"),
        ({"entries": [{"type": 5}]}, "entries.0.type: expected text, found the number 5"),
        ({"rate": 1, "lr": 1}, "lr: 'lr' and 'rate' are the same key, and both are given"),
        ({"flag": True, "steps": 13}, "steps: 13 contradicts flag"),
    ],
)
def test_a_wrong_value_is_refused_in_words(data, message):
    (problem,) = problems(data)
    assert problem.startswith(message)


def test_a_required_key_is_asked_for():
    assert problems({}, NeedyConfig) == ["needed: the key 'needed' is required (text)"]


def test_all_problems_are_told_at_once():
    found = problems({"rat": 1, "steps": "x", "inner": {"dpeth": 2, "name": 3}, "betas": ["a", "b"]})
    assert len(found) == 6


def test_a_contradiction_is_looked_for_only_where_all_values_are_right():
    (problem,) = problems({"flag": True, "steps": 13, "title": 5})
    assert problem.startswith("title")


def test_a_commented_out_section_takes_its_defaults():
    assert structure({"inner": None}).inner == InnerConfig()


def test_a_lone_section_may_stand_for_a_list_of_them_where_its_class_says_so():
    assert [entry.size for entry in structure({"entries": {"size": 3}}).entries] == [3]
    assert problems({"entries": {"size": "x"}}) == ["entries.size: expected a whole number, found 'x'"]


def test_a_shorthand_is_written_out_and_an_override_may_set_a_part_of_it():
    assert structure({"entries": ["5"]}).entries[0].size == 5
    config = structure({"entries": ["5"]}, overrides=("entries.0.type=big",))
    assert (config.entries[0].size, config.entries[0].type) == (5, "big")


def test_a_deprecated_key_works_and_warns():
    recipe = load_recipe({"old": 3})
    structurer = Structurer(recipe)
    assert structurer.structure(recipe.data, OuterConfig).old == 3
    assert structurer.warnings == ["old: deprecated: remove it"]


def test_the_keys_of_a_class_are_told_for_the_reference():
    infos = {info.name: info for info in keys_of(OuterConfig)}
    assert infos["rate"].doc == "How fast."
    assert infos["rate"].bounds == {"gt": 0}
    assert infos["rate"].aliases == ("lr",)
    assert infos["names"].default == []
    assert infos["old"].deprecated == "remove it"
    assert {info.name: info.required for info in keys_of(NeedyConfig)} == {"needed": True, "section": False}


def test_subclasses_add_keys_and_replace_defaults():
    class Narrow(InnerConfig):
        depth: int = 5
        width: int = 7

    assert structure({"width": 8}, Narrow) == Narrow(depth=5, width=8)


def test_an_annotation_that_cannot_be_resolved_names_the_class():
    class Lost(Config):
        thing: Nowhere = 1  # noqa: F821

    with pytest.raises(PluginError, match=r"Lost.*Nowhere"):
        keys_of(Lost)
