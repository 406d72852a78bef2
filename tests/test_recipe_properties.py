"""Properties of validation: whatever is done to a good recipe, it is accepted or refused in words, and never
misread."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from arctic_training import redaction
from arctic_training.dump import dump, plain
from arctic_training.errors import ArcticError, RecipeError
from arctic_training.plugins import PluginManager, create_plugin_manager
from arctic_training.recipe import load_recipe
from arctic_training.resolve import resolve

GOOD: dict[str, Any] = {
    "type": "sft",
    "skip_validation": False,
    "epochs": 2,
    "train_iters": "1k",
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "seed": 1,
    "eval_interval": 10,
    "mem_profiler": None,
    "run_dir": "out",
    "model": {
        "type": "huggingface",
        "name_or_path": "somewhere/model",
        "dtype": "fp32",
        "attn_implementation": "sdpa",
        "hf_config_kwargs": {"num_hidden_layers": 2},
        "revision": "main",
    },
    "tokenizer": {"type": "huggingface", "name_or_path": "somewhere/tokenizer", "chat_template": "template.jinja"},
    "data": {
        "type": "sft",
        "sources": [
            {
                "type": "huggingface_instruct",
                "name_or_path": "chats.jsonl",
                "split": "train[:10%]",
                "sample_ratio": "50%",
            },
            {"name_or_path": "more", "sample_count": 10, "role_mapping": {"user": "question"}},
        ],
        "eval_sources": [{"name_or_path": "held_out", "process": True}],
        "max_length": "2Ki",
        "pack_samples": True,
        "train_eval_split": [1.0, 0.0],
        "pad_to": "max_length",
    },
    "optimizer": {"learning_rate": "1e-4", "betas": [0.9, 0.95], "weight_decay": 0},
    "scheduler": {"type": "huggingface", "name": "cosine", "warmup_ratio": "10%", "scheduler_specific_kwargs": {}},
    "engine": {"type": "deepspeed"},
    "deepspeed": {"zero_optimization": {"stage": 2, "reduce_bucket_size": "5e8"}, "gradient_clipping": 1.0},
    "checkpoint": [{"type": "huggingface", "output_dir": "out", "save_end_of_training": True, "keep_last": 2}],
    "logger": {"level": "INFO", "print_output_ranks": [0, 1], "file_output_ranks": "*"},
    "wandb": {"enable": False, "project": "arctic"},
    "plugins": {"require": ["sft"], "block": []},
}

FREE = ("hf_config_kwargs", "scheduler_specific_kwargs", "role_mapping")
"""Sections whose keys nobody but the data or another library knows."""

PROPERTY = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def plugins() -> PluginManager:
    return create_plugin_manager()


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    """A value under a slip such as ``name_or_pat_`` is a secret, and would be left out of what other tests write."""
    monkeypatch.setattr(redaction, "_remembered", set())


def key_paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every key whose section knows its keys."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in FREE:
                yield (*path, name)
                yield from key_paths(item, (*path, name))
            else:
                yield (*path, name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from key_paths(item, (*path, index))


def value_paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in children:
        yield from value_paths(item, (*path, name))


def at(data: Any, path: tuple) -> Any:
    for name in path:
        data = data[name]
    return data


def values_of(text: str) -> list[str]:
    """The lines of a dumped recipe without their origins; not a number differs from itself, so texts are compared."""
    return [line.rpartition("  # ")[0] or line for line in text.splitlines()]


@st.composite
def misspelt(draw: st.DrawFn, name: str) -> str:
    """A slip of the finger: a character dropped, doubled, replaced, or swapped with the next."""
    place = draw(st.integers(0, len(name) - 1))
    letter = draw(st.sampled_from("aeinrst_x"))
    before, after = name[:place], name[place + 1 :]
    return draw(
        st.sampled_from(
            [
                before + after,
                before + name[place] * 2 + after,
                before + letter + after,
                before + after[:1] + name[place] + after[1:],
                name.upper(),
                name.replace("_", "-") if "_" in name else name + "s",
            ]
        )
    )


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["1k", "auto", "10%", "sft", "huggingface", "train", "2^9999", "1e9999", "=", "a.b", "x:train[:1%]"]
    ),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.integers() | st.sampled_from(["type", "=", "stage", "lr"]), children, max_size=3
        )
    ),
    max_leaves=6,
)


def test_the_recipe_is_good(plugins):
    config = resolve(load_recipe(GOOD), plugins)
    assert plain(resolve(load_recipe(plain(config)), plugins)) == plain(config)


@PROPERTY
@given(data=st.data())
def test_a_misspelt_key_is_never_accepted(plugins, data):
    path = data.draw(st.sampled_from(list(key_paths(GOOD))))
    wrong = data.draw(misspelt(path[-1]))
    recipe = copy.deepcopy(GOOD)
    section = at(recipe, path[:-1])
    assume(wrong and wrong not in section)
    section[wrong] = section.pop(path[-1])
    with pytest.raises(RecipeError) as caught:
        resolve(load_recipe(recipe), plugins)
    dotted = ".".join(str(name) for name in (*path[:-1], wrong))
    assert any(problem.path == dotted for problem in caught.value.problems), str(caught.value)


@PROPERTY
@given(data=st.data())
def test_any_value_anywhere_is_refused_in_words_or_accepted_and_written_back(plugins, tmp_path_factory, data):
    path = data.draw(st.sampled_from(list(value_paths(GOOD))[1:]))
    recipe = copy.deepcopy(GOOD)
    at(recipe, path[:-1])[path[-1]] = data.draw(ANYTHING)
    try:
        config = resolve(load_recipe(recipe), plugins)
    except ArcticError as error:
        assert str(error)
        return
    written = tmp_path_factory.getbasetemp() / "written.yaml"
    written.write_text(dump(config), encoding="utf-8")
    assert values_of(dump(resolve(load_recipe(written), plugins))) == values_of(dump(config))


@PROPERTY
@given(data=st.data())
def test_any_damage_to_the_text_is_survived(plugins, tmp_path_factory, data):
    text = dump(resolve(load_recipe(GOOD), plugins))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 20)))
    noise = data.draw(
        st.text(max_size=5)
        | st.sampled_from(["\t", "[", "}", ": ", "&a ", "*a", "- ", "|", "'", "!!x ", "<<: ", "\ufeff"])
    )
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes((text[:start] + noise + text[end:]).encode("utf-8", errors="surrogatepass"))
    try:
        resolve(load_recipe(path), plugins)
    except RecipeError as error:
        assert all(problem.line > 0 and problem.column > 0 for problem in error.problems)
    except ArcticError as error:
        assert str(error)


@PROPERTY
@given(
    path=st.lists(
        st.text(max_size=5) | st.sampled_from(["model", "data", "sources", "0", "split", "epochs", "x"]), max_size=4
    ),
    value=st.text(max_size=10),
)
def test_any_override_is_accepted_or_refused_by_name(plugins, path, value):
    override = ".".join(path) + "=" + value
    try:
        resolve(load_recipe(GOOD, [override]), plugins)
    except RecipeError as error:
        assert str(error).startswith(("override ", "data", "eval_interval", "evaluate", "epochs"))
    except ArcticError as error:
        assert str(error)
