"""What DeepSpeed is configured with follows from the whole recipe, and is said out in full."""

from types import SimpleNamespace

import pytest

from arctic_deepspeed.ds_config import (
    LEAST_BUCKET,
    MOST_BUCKET,
    RunFacts,
    check_engine,
    complete,
    contradictions,
    hidden_size_of,
)
from arctic_training.errors import ArcticError


def facts(**changes):
    given = {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "num_ranks": 3, "precision": "bf16"}
    return RunFacts(**given | changes)


def completed(section, **changes):
    config, problems = complete(section, facts(**changes))
    assert not problems
    return config


def test_batch_sizes_come_from_the_recipe():
    config = completed({})
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 4
    assert config["train_batch_size"] == 24


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        (
            {"train_batch_size": 16},
            ("train_batch_size",),
            "is 16, and micro_batch_size x gradient_accumulation_steps x",
        ),
        ({"train_micro_batch_size_per_gpu": 1}, ("train_micro_batch_size_per_gpu",), "is 1, and micro_batch_size"),
        ({"gradient_accumulation_steps": 1}, ("gradient_accumulation_steps",), "is 1, and gradient_accumulation_steps"),
        ({"bf16": {"enabled": False}}, ("bf16", "enabled"), "is off, and model.dtype is bf16"),
        ({"bfloat16": {"enabled": False}}, ("bf16", "enabled"), "is off, and model.dtype is bf16"),
        ({"fp16": {"enabled": True}}, ("fp16", "enabled"), "is on, and model.dtype is bf16"),
    ],
)
def test_a_section_that_contradicts_the_recipe_is_refused(section, path, message):
    _, (problem,) = complete(section, facts())
    assert problem.path == path
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"train_batch_size": 12},
            "is 12, and micro_batch_size x gradient_accumulation_steps is 8: no number of ranks",
        ),
        ({"train_micro_batch_size_per_gpu": 1}, "is 1, and micro_batch_size comes to 2"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "is on, and so is bf16"),
        ({"fp16": {"enabled": True}}, "is on, and model.dtype is bf16"),
    ],
)
def test_a_contradiction_that_needs_no_ranks_is_known_before_the_run(section, message):
    (problem,) = contradictions(section, facts(num_ranks=None))
    assert problem.message.startswith(message)


@pytest.mark.parametrize(
    "section", [{}, {"train_batch_size": 8}, {"train_batch_size": 24}, {"bf16": {"enabled": True}}]
)
def test_what_some_number_of_ranks_makes_true_is_left_to_the_run(section):
    assert contradictions(section, facts(num_ranks=None)) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_precision_is_that_of_the_model_over_fp32_sums(precision):
    config = completed({}, precision=precision)
    assert [name for name in ("bf16", "fp16") if config[name]["enabled"]] == [precision] * (precision != "fp32")
    assert config["data_types"]["grad_accum_dtype"] == "fp32"
    assert config["communication_data_type"] == "fp32"


@pytest.mark.parametrize(
    ("width", "bucket"), [(None, LEAST_BUCKET), (256, LEAST_BUCKET), (4096, 4096**2), (32768, MOST_BUCKET)]
)
def test_buckets_are_sized_from_the_width_of_the_model(width, bucket):
    zero = completed({}, hidden_size=width)["zero_optimization"]
    assert zero["stage"] == 2
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket


def test_what_the_user_says_stands():
    section = {"gradient_clipping": 0.3, "zero_optimization": {"stage": 3, "reduce_bucket_size": 7_000_000}}
    config = completed(section, hidden_size=4096)
    assert config["gradient_clipping"] == 0.3
    assert config["zero_optimization"]["reduce_bucket_size"] == 7_000_000
    assert section["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 7_000_000}


def test_gradients_are_clipped_at_one_and_any_optimizer_is_welcome():
    config = completed({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    assert config["gradient_clipping"] == 1.0
    assert config["zero_allow_untested_optimizer"] is True
    assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SimpleNamespace(hidden_size=64), 64),
        (SimpleNamespace(n_embd=32), 32),
        (SimpleNamespace(text_config=SimpleNamespace(hidden_size=16), hidden_size=99), 16),
        (SimpleNamespace(), None),
        (None, None),
    ],
)
def test_the_width_is_read_where_models_keep_it(config, size):
    assert hidden_size_of(config) == size


def test_an_option_that_deepspeed_took_otherwise_is_an_error():
    config = completed({}, precision="fp32")
    zero = config["zero_optimization"]
    engine = SimpleNamespace(
        train_batch_size=lambda: 24,
        train_micro_batch_size_per_gpu=lambda: 2,
        gradient_accumulation_steps=lambda: 4,
        gradient_clipping=lambda: 0.0,
        gradient_predivide_factor=lambda: 1.0,
        postscale_gradients=lambda: True,
        communication_data_type="torch.float32",
        bfloat16_enabled=lambda: False,
        fp16_enabled=lambda: False,
        zero_optimization_stage=lambda: 2,
        zero_reduce_bucket_size=lambda: zero["reduce_bucket_size"],
        get_data_types=lambda: ("torch.float32", "torch.float32"),
    )
    with pytest.raises(ArcticError, match=r"gradient_clipping as 0\.0, and the configuration says 1\.0"):
        check_engine(engine, config)
    engine.gradient_clipping = lambda: 1.0
    check_engine(engine, config)
