"""``key=value`` overrides: where they may point, and that their values are typed by the key they set."""

from __future__ import annotations

from typing import Any

import pytest

from arctic_training.config import Config, key
from arctic_training.errors import RecipeError
from arctic_training.overrides import is_override
from arctic_training.recipe import load_recipe
from arctic_training.structuring import Structurer

RECIPE: dict[str, Any] = {
    "epochs": 1,
    "model": {"name": "m"},
    "data": {"sources": ["one", {"name": "two"}]},
    "empty": None,
}


class RunConfig(Config):
    run_dir: str = "runs"
    name: str | None = None
    rate: float = key(1.0, aliases=("lr",))
    steps: int = 0
    folders: list[str] = key(factory=list)
    inner: dict[str, Any] = key(factory=dict)


def typed(*overrides: str, **data: Any) -> RunConfig:
    recipe = load_recipe(data, overrides)
    structurer = Structurer(recipe)
    config = structurer.structure(recipe.data, RunConfig)
    structurer.finish()
    return config


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("epochs=3", ("epochs",), 3),
        ("model.name=other", ("model", "name"), "other"),
        ("model.dtype=fp32", ("model", "dtype"), "fp32"),
        ("optimizer.lr=1e-4", ("optimizer", "lr"), 1e-4),
        ("data.sources.1.name=x", ("data", "sources", 1, "name"), "x"),
        ("data.sources.1=x:train[:1%]", ("data", "sources", 1), "x:train[:1%]"),
        ("data.sources=[a, b]", ("data", "sources"), ["a", "b"]),
        ("checkpoint=[]", ("checkpoint",), []),
        ("checkpoint={type: x, n: [1]}", ("checkpoint",), {"type": "x", "n": [1]}),
        ("empty.key=true", ("empty", "key"), True),
        ("a.b.c.d=null", ("a", "b", "c", "d"), None),
        ("epochs=", ("epochs",), None),
        ("template={% for x %}", ("template",), "{% for x %}"),
        ("model.name=a=b", ("model", "name"), "a=b"),
        ("model.name='5'", ("model", "name"), "5"),
    ],
)
def test_an_override_sets_one_value(override, path, value):
    recipe = load_recipe(RECIPE, [override])
    found: Any = recipe.data
    for name in path:
        found = found[name]
    assert found == value
    assert recipe.origin(path) == "override"
    assert recipe.position(path) == (f"override '{override}'", 0, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "expected 'key=value', found no '='"),
        ("=3", "the key before '=' is empty"),
        ("model..name=3", "a part of the key is empty"),
        ("model.=3", "a part of the key is empty"),
        ("data.sources.2.name=x", "'data.sources' has 2 entries, there is no index 2"),
        ("data.sources.2=x", "'data.sources' has 2 entries, there is no index 2"),
        ("data.sources.-1=x", "expected an index such as 'data.sources.0', found '-1'"),
        ("data.sources.name=x", "expected an index such as 'data.sources.0', found 'name'"),
        ("epochs.x=1", "'epochs' holds 1, which has no keys"),
        ("extends=x.yaml", "'extends' cannot be overridden"),
        ("data.sources=[a, b]: c", None),
    ],
)
def test_an_override_that_does_not_fit_is_named(override, message):
    if message is None:  # not YAML, so it is text, and the key decides whether text will do
        assert load_recipe(RECIPE, [override]).data["data"]["sources"] == "[a, b]: c"
        return
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPE, [override])
    assert str(caught.value).startswith(f"override '{override}': ")
    assert message in str(caught.value)


def test_all_overrides_that_do_not_fit_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        load_recipe(RECIPE, ["epochs", "model.name=x", "=1"])
    assert len(caught.value.problems) == 2


def test_later_overrides_win():
    assert load_recipe(RECIPE, ["epochs=2", "epochs=3"]).data["epochs"] == 3


def test_text_is_taken_as_it_was_typed():
    assert typed("run_dir=1e3").run_dir == "1e3"
    assert typed("run_dir=0x10").run_dir == "0x10"
    assert typed("run_dir=true").run_dir == "true"
    assert typed("run_dir=a # b").run_dir == "a # b"
    assert typed("run_dir=a: b").run_dir == "a: b"
    assert typed("run_dir=[x").run_dir == "[x"
    assert typed("run_dir='quoted'").run_dir == "quoted"
    assert typed("name=007").name == "007"
    assert typed("name=null").name is None
    assert typed("folders=[1e3, 007, x]").folders == ["1e3", "007", "x"]


def test_numbers_are_typed_by_their_key():
    assert typed("steps=1.5k", "rate=10%").steps == 1500
    assert typed("rate=10%").rate == 0.1
    assert typed("inner.depth=3").inner == {"depth": 3}


def test_a_wrong_override_names_itself_and_the_nearest_key():
    with pytest.raises(RecipeError) as caught:
        typed("inner={}", "stepz=1")
    assert str(caught.value) == "override 'stepz=1': stepz: unknown key; did you mean 'steps'?"
    with pytest.raises(RecipeError, match=r"override 'steps=many': steps: expected a whole number, found 'many'"):
        typed("steps=many")


def test_an_override_by_alias_wins_over_the_recipe():
    assert typed("lr=2", rate=1).rate == 2.0
    assert typed("rate=2", lr=1).rate == 2.0


def test_text_has_no_keys_unless_it_is_a_shorthand():
    with pytest.raises(RecipeError, match=r"override 'run_dir.x=1': .*cannot be set: .*the text 'here'"):
        typed("run_dir.x=1", run_dir="here")


@pytest.mark.parametrize(
    "words", [("steps", "=", "3"), ("steps", "=3"), ("steps=", "3"), ("rate=1", "steps", "=", "3")]
)
def test_an_override_torn_by_spaces_is_told_how_it_is_written(words):
    with pytest.raises(RecipeError, match=r"^override 'steps=3': spaces around '=' make several arguments of it"):
        typed(*words)


def test_words_of_the_command_line_are_told_apart():
    assert is_override("a.b=1")
    assert not is_override("--num_gpus=2")
    assert not is_override("recipe.yaml")
