"""The words after `arctic run` find their way: to the recipe, to its overrides, to the launcher, to arctic."""

from __future__ import annotations

import click
import pytest

from arctic_cli.arguments import Words, divide
from arctic_cli.options import words_of_common_options


def divided(line: str) -> Words:
    with_value, flags = words_of_common_options()
    return divide(line.split(), with_value=with_value, flags=flags)


@pytest.mark.parametrize(
    ("line", "overrides", "launcher"),
    [
        ("r.yaml", (), ()),
        ("r.yaml optimizer.lr=1e-4", ("optimizer.lr=1e-4",), ()),
        ("r.yaml --num_gpus 2", (), ("--num_gpus", "2")),
        ("--num_gpus 2 r.yaml", (), ("--num_gpus", "2")),
        ("r.yaml --num_gpus=2 epochs=1", ("epochs=1",), ("--num_gpus=2",)),
        ("r.yaml --num_gpus 2 epochs=1", ("epochs=1",), ("--num_gpus", "2")),
        ("r.yaml epochs=1 --hostfile F checkpoint=[]", ("epochs=1", "checkpoint=[]"), ("--hostfile", "F")),
        ("r.yaml --include localhost:0,1 seed=1", ("seed=1",), ("--include", "localhost:0,1")),
        ("r.yaml --include=localhost:0@other:1", (), ("--include=localhost:0@other:1",)),
        ("r.yaml --master_port 29501 -H hosts", (), ("--master_port", "29501", "-H", "hosts")),
        ("r.yaml data.sources.0.split=train[:1%]", ("data.sources.0.split=train[:1%]",), ()),
        ("r.yaml model.hf_config_kwargs.a-B=1", ("model.hf_config_kwargs.a-B=1",), ()),
        ("r.yaml optimizer.lr=-1", ("optimizer.lr=-1",), ()),
        ("r.yaml model.name_or_path=a=b", ("model.name_or_path=a=b",), ()),
    ],
)
def test_overrides_and_launcher_arguments_are_told_apart(line, overrides, launcher):
    assert divided(line) == Words("r.yaml", overrides, launcher)


def test_an_override_behind_a_launcher_flag_stays_an_override():
    assert divided("r.yaml --force_multi epochs=2") == Words("r.yaml", ("epochs=2",), ("--force_multi",))


def test_a_variable_behind_a_launcher_option_is_its_value():
    assert divided("r.yaml --export NCCL_DEBUG=INFO epochs=2") == Words(
        "r.yaml", ("epochs=2",), ("--export", "NCCL_DEBUG=INFO")
    )
    assert divided("r.yaml --launcher_args a=b epochs=2") == Words("r.yaml", ("epochs=2",), ("--launcher_args", "a=b"))


def test_a_recipe_behind_a_launcher_flag_is_still_the_recipe():
    assert divided("--force_multi recipe.yaml") == Words("recipe.yaml", (), ("--force_multi",))
    assert divided("--hostfile hosts.yaml recipe.yaml") == Words("recipe.yaml", (), ("--hostfile", "hosts.yaml"))


def test_everything_behind_a_double_dash_goes_to_the_launcher_as_it_is():
    assert divided("r.yaml seed=1 -- --verbose a=b -p x") == Words(
        "r.yaml", ("seed=1",), ("--verbose", "a=b", "-p", "x")
    )


def test_options_of_arctic_are_kept_from_the_launcher():
    words = divided("r.yaml -p no:sft --num_gpus 2 --no-code -pno:huggingface --traceback -vv -q --no-color")
    assert words.launcher == ("--num_gpus", "2")
    assert words.own == ("-p", "no:sft", "--no-code", "-pno:huggingface", "--traceback", "-vv", "-q", "--no-color")


@pytest.mark.parametrize(("word", "meant"), [("--no_code", "--no-code"), ("--trace-back", "--traceback")])
def test_a_misspelt_option_of_arctic_does_not_end_up_with_the_launcher(word, meant):
    with pytest.raises(click.UsageError, match=f"there is no option {word}; did you mean {meant}?"):
        divided(f"r.yaml {word}")


@pytest.mark.parametrize("word", ["--no_ssh", "--no_python", "--no_local_rank", "--module", "--node_rank"])
def test_options_of_the_launcher_are_not_taken_for_misspelt_ones(word):
    assert divided(f"r.yaml {word}").launcher == (word,)


def test_a_second_recipe_is_refused():
    with pytest.raises(click.UsageError, match=r"there are two recipes, 'a\.yaml' and 'b\.yaml'"):
        divided("a.yaml b.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "r.yaml optimizer.lr = 1e-4",
        "r.yaml optimizer.lr =1e-4",
        "r.yaml optimizer.lr= 1e-4",
        "optimizer.lr = 1e-4 r.yaml",
        "r.yaml --force_multi optimizer.lr = 1e-4",
    ],
)
def test_an_override_with_spaces_around_its_equals_sign_is_told_how_it_is_written(line):
    with pytest.raises(click.UsageError, match=r"'optimizer\.lr=1e-4': spaces around '=' make several arguments of it"):
        divided(line)


def test_a_value_without_a_key_is_refused():
    with pytest.raises(click.UsageError, match="there is no key before the '=' of '=2'"):
        divided("r.yaml epochs=1 =2")


def test_an_override_of_nothing_before_the_recipe_stays_one():
    assert divided("checkpoint= r.yaml") == Words("r.yaml", ("checkpoint=",))


@pytest.mark.parametrize("line", ["", "optimizer.lr=1", "--num_gpus 2"])
def test_without_a_recipe_nothing_is_guessed(line):
    with pytest.raises(click.UsageError, match="a recipe is missing"):
        divided(line)
