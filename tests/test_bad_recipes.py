"""Recipes that fail: each says all that is wrong with it, at its line and column, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from arctic_training import hookimpl
from arctic_training.config import Config, key
from arctic_training.errors import RecipeError
from arctic_training.plugins import create_plugin_manager
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve


@attrs.frozen
class Case:
    """One entry of ``bad_recipes.txt``; a place of ``None`` lies in an override."""

    title: str
    expected: list[tuple[tuple[int, int] | None, str]]
    overrides: list[str]
    recipe: str


def read_cases(text: str) -> list[Case]:
    cases = []
    for block in re.split(r"^=== ", text, flags=re.MULTILINE)[1:]:
        head, _, recipe = block.partition("---\n")
        title, *lines = head.strip().splitlines()
        overrides = [line[2:] for line in lines if line.startswith("+ ")]
        expected = []
        for line in lines:
            place, _, message = line.partition(" ")
            if place == "-":
                expected.append((None, message))
            elif place != "+":
                row, column = place.split(":")
                expected.append(((int(row), int(column)), message))
        cases.append(Case(title, expected, overrides, recipe.removesuffix("\n").replace("<TAB>", "\t")))
    return cases


CASES = read_cases((Path(__file__).parent / "bad_recipes.txt").read_text(encoding="utf-8"))


class WindConfig(Config):
    force: int = key(0, ge=0)


class WeatherConfig(Config):
    temperature: float = 20.0
    wind: WindConfig = key(factory=WindConfig)


class WeatherPlugin:
    """A plugin of somebody else with a section of its own."""

    @hookimpl
    def arctic_register_config_sections(self) -> dict[str, Any]:
        return {"weather": WeatherConfig}


@pytest.fixture
def problems_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def problems_of(recipe: str | bytes, overrides: list[str] = []) -> list[Any]:  # noqa: B006 - not changed
        Path("recipe.yaml").write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
        plugins = create_plugin_manager()
        plugins.register(WeatherPlugin(), "weather")
        with pytest.raises(RecipeError) as caught:
            resolve(load_recipe("recipe.yaml", overrides), plugins)
        assert caught.value.exit_code == 2
        return caught.value.problems

    return problems_of


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_bad_recipe_is_told_what_is_wrong_and_where(problems_of, case):
    problems = problems_of(case.recipe, case.overrides)
    places = [(problem.line, problem.column) if problem.line else None for problem in problems]
    told = "\n".join(str(problem) for problem in problems)
    assert sorted(places, key=str) == sorted((place for place, _ in case.expected), key=str), told
    for place, message in case.expected:
        assert any(message in str(problem) for problem, at in zip(problems, places, strict=True) if at == place), (
            f"{place} {message}\nwas not told, but\n{told}"
        )
    for problem in problems:
        assert problem.line == 0 or str(problem).startswith(f"recipe.yaml:{problem.line}:{problem.column}: ")


def test_the_table_is_long_enough():
    assert len(CASES) >= 60
    assert len({case.title for case in CASES}) == len(CASES)


def test_a_recipe_that_is_not_utf8_is_told_its_first_wrong_byte(problems_of):
    (problem,) = problems_of(b"model: {name_or_path: m}\ndata: {sources: [\xff]}\n")
    assert (problem.line, problem.column) == (2, 18)


def test_an_error_in_a_base_recipe_is_placed_in_the_base(problems_of, tmp_path):
    (tmp_path / "base.yaml").write_text("model:\n  name_or_path: m\n  dtyp: bf16\n")
    (problem,) = problems_of("extends: base.yaml\ndata: {sources: [s]}\n")
    assert str(problem) == "base.yaml:3:3: model.dtyp: unknown key; did you mean 'dtype'?"


def test_the_sections_of_a_good_recipe_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("model: {name_or_path: m}\ndata: {sources: [s]}\nweather: {wind: {force: 1k}}\n")
    plugins = create_plugin_manager()
    plugins.register(WeatherPlugin(), "weather")
    assert resolve(load_recipe("recipe.yaml"), plugins).sections["weather"].wind.force == 1000
