"""Recipes as files: places of keys and values, what is no recipe, ``extends``."""

from __future__ import annotations

import pytest

from arctic_training.errors import RecipeError
from arctic_training.recipe import load_recipe


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write


def problem_of(source, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    (problem,) = caught.value.problems
    return problem


def test_keys_and_values_know_their_lines(write):
    recipe = load_recipe(write("model:\n  dtype: bf16\ndata:\n  sources:\n    - one\n    - {type: x}\n"))
    assert recipe.data == {"model": {"dtype": "bf16"}, "data": {"sources": ["one", {"type": "x"}]}}
    assert recipe.position(("model", "dtype"), of="key") == ("recipe.yaml", 2, 3)
    assert recipe.position(("model", "dtype")) == ("recipe.yaml", 2, 10)
    assert recipe.position(("data", "sources", 1, "type")) == ("recipe.yaml", 6, 14)
    assert recipe.position(("model", "absent")) == ("recipe.yaml", 1, 1)
    assert recipe.position(("absent",)) == ("recipe.yaml", 1, 1)
    assert recipe.place(("model", "dtype")) == "recipe.yaml:2:10: model.dtype"
    assert load_recipe({"model": {"dtype": "bf16"}}).place(("model", "dtype")) == "model.dtype"
    assert recipe.origin(("model", "dtype")) == "recipe.yaml:2"
    assert recipe.origin(("absent",)) == "default"


def test_a_key_without_a_value_is_where_its_key_is(write):
    assert load_recipe(write("a: 1\nmodel:\n\n\nb: 2\n")).position(("model",)) == ("recipe.yaml", 2, 1)


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "the recipe is empty"),
        ("# nothing\n", 1, 1, "the recipe is empty"),
        ("null\n", 1, 1, "the recipe is empty"),
        ("- a\n- b\n", 1, 1, "expected a mapping of keys, found a list"),
        ("\nhello\n", 2, 1, "expected a mapping of keys, found the value 'hello'"),
        ("model:\n\tdtype: bf16\n", 2, 1, "a tab cannot indent in YAML; use spaces"),
        ("a: [1, 2\nb: 3\n", 2, 2, "this is not YAML"),
        ("a: 'x\n", 2, 1, "quoted scalar"),
        ("a: 1\n  b: 2\n", 2, 4, "check the indentation"),
        ("a: @b\n", 1, 4, "put the text in quotes"),
        ("a: *b\n", 1, 4, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, 1, "another document"),
        ("a: 1\nb: 2\na: 3\n", 3, 1, "the key 'a' is given twice, first at 1:1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, 3, "the key 'b' is given twice, first at 2:3"),
        ("a: {b: 1, b: 2}\n", 1, 11, "given twice, first at 1:5"),
        ("a: !!python/object:os.system x\n", 1, 4, "the tag '!!python/object:os.system' is not allowed"),
        ("a: !env HOME\n", 1, 4, "the tag '!env' is not allowed"),
        ("? [a]\n: 1\n", 1, 3, "a key must be text"),
        ("a: &x [*x]\n", 1, 4, "an alias points to what contains it"),
        ("a: 1\n<<: [1]\n", 2, 6, "expected a mapping to merge"),
        ("a: \x01\n", 1, 4, "is not allowed in YAML"),
        ("[" * 5000, 1, 1, "nested too deeply"),
        ("a: 1\nextends: 5\n", 2, 10, "expected the path of a recipe"),
        ("extends: nowhere.yaml\n", 1, 10, "there is no recipe 'nowhere.yaml'"),
        ("extends: recipe.yaml\n", 1, 10, "in a circle: recipe.yaml -> recipe.yaml"),
    ],
)
def test_what_is_no_recipe_is_refused_at_its_place(write, text, line, column, message):
    problem = problem_of(write(text))
    assert (problem.file, problem.line, problem.column) == ("recipe.yaml", line, column)
    assert message in str(problem)


def test_a_file_that_is_not_utf8_is_refused_at_the_first_wrong_byte(write):
    problem = problem_of(write(b"a: 1\nb: \xff\xfe\n"))
    assert (problem.line, problem.column, problem.message) == (2, 4, "the file is not UTF-8 text")


def test_a_byte_order_mark_is_no_part_of_the_text(write):
    assert load_recipe(write(b"\xef\xbb\xbfa: 1\n")).data == {"a": 1}


def test_an_absent_file_and_a_directory_are_told_apart(tmp_path):
    assert "no such file" in str(problem_of(tmp_path / "absent.yaml"))
    assert "found a directory" in str(problem_of(tmp_path))


def test_a_few_lines_that_stand_for_billions_of_values_are_refused(write):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "stands for more than" in str(problem_of(write("\n".join(lines))))


def test_every_duplicate_key_is_told(write):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write("a: 1\na: 2\nb: {c: 1, c: 2}\n"))
    assert [(problem.line, problem.column) for problem in caught.value.problems] == [(2, 1), (3, 11)]


def test_scalars_are_those_of_yaml_1_2(write):
    recipe = load_recipe(
        write("a: 1e-5\nb: 1_000\nc: yes\nd: 010\ne: 0x1F\nf: 2024-01-01\ng: '1'\nh: ~\ni: .inf\nj: on\nk: 1k\n")
    )
    assert recipe.data == {
        "a": 1e-5,
        "b": 1000,
        "c": "yes",
        "d": 10,
        "e": 31,
        "f": "2024-01-01",
        "g": "1",
        "h": None,
        "i": float("inf"),
        "j": "on",
        "k": "1k",
    }


def test_null_takes_a_mapping_of_the_extended_recipe_away(write):
    write("deepspeed: {zero_optimization: {stage: 3}}\nscheduler: {name: cosine}\nseed: 1\n", "base.yaml")
    recipe = load_recipe(
        write("extends: base.yaml\ndeepspeed: {zero_optimization: null}\nscheduler: null\nseed: null\n")
    )
    assert recipe.data == {"deepspeed": {}, "seed": None}


def test_anchors_and_merge_keys_keep_their_places(write):
    recipe = load_recipe(write("base: &base {x: 1, y: 2}\nmodel:\n  <<: *base\n  y: 3\n"))
    assert recipe.data["model"] == {"x": 1, "y": 3}
    assert recipe.position(("model", "x"), of="key") == ("recipe.yaml", 1, 14)
    assert recipe.position(("model", "y"), of="key") == ("recipe.yaml", 4, 3)


def test_nothing_is_taken_from_the_environment(write):
    assert load_recipe(write("a: $HOME\nb: ${HOME}\nc: ~/x\n")).data == {"a": "$HOME", "b": "${HOME}", "c": "~/x"}


def test_a_recipe_extends_another_deeply_and_each_key_keeps_its_file(write):
    write("epochs: 1\nmodel: {dtype: bf16, name: m}\ndata:\n  sources: [a, b]\n", "bases/base.yaml")
    write("extends: base.yaml\nepochs: 2\n", "bases/middle.yaml")
    recipe = load_recipe(write("extends: bases/middle.yaml\nmodel:\n  dtype: fp32\ndata:\n  sources: [c]\n"))
    assert recipe.data == {"epochs": 2, "model": {"dtype": "fp32", "name": "m"}, "data": {"sources": ["c"]}}
    assert recipe.position(("model", "dtype")) == ("recipe.yaml", 3, 10)
    assert recipe.position(("model", "name"), of="key") == ("bases/base.yaml", 2, 22)
    assert recipe.origin(("epochs",)) == "middle.yaml:2"
    assert recipe.node(("data", "sources", 1)) is None


def test_recipes_that_extend_each_other_are_refused(write):
    write("extends: recipe.yaml\n", "other.yaml")
    problem = problem_of(write("epochs: 1\nextends: other.yaml\n"))
    assert (problem.file, problem.line) == ("other.yaml", 1)
    assert "recipe.yaml -> other.yaml -> recipe.yaml" in problem.message


def test_an_error_in_the_extended_recipe_is_placed_there(write):
    write("a: 1\na: 2\n", "base.yaml")
    assert problem_of(write("extends: base.yaml\n")).file == "base.yaml"


def test_a_mapping_is_a_recipe_without_places():
    recipe = load_recipe({"model": {"dtype": "bf16"}, "sources": ("a",)})
    assert recipe.data == {"model": {"dtype": "bf16"}, "sources": ["a"]}
    assert recipe.position(("model", "dtype")) == ("", 0, 0)
    assert str(recipe.problem(("model", "dtype"), "wrong")) == "model.dtype: wrong"


def test_a_mapping_may_extend_a_file(write):
    assert load_recipe({"extends": write("a: 1\nb: 1\n"), "b": 2}).data == {"a": 1, "b": 2}


def test_the_mapping_that_was_given_is_left_as_it_is():
    given = {"extends_not": {"a": [1]}}
    recipe = load_recipe(given, ["extends_not.a.0=5"])
    recipe.data["extends_not"]["b"] = 1
    assert given == {"extends_not": {"a": [1]}}
