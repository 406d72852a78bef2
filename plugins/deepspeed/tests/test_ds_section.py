"""The recipe's deepspeed section is held to DeepSpeed's own keys, without DeepSpeed."""

import subprocess
import sys

import pytest

from arctic_deepspeed.key_table import shipped
from arctic_deepspeed.section import OURS, WITHOUT_EFFECT, DeepSpeedSection
from arctic_training.human_numbers import convert_leaves


def structured(section):
    return DeepSpeedSection.structure_free(convert_leaves(section))


def problems_of(section):
    return [(".".join(problem.path), problem.message, problem.remedy) for problem in structured(section)[1]]


@pytest.mark.parametrize(
    ("section", "path", "says"),
    [
        ({"gradient_cliping": 1.0}, "gradient_cliping", "did you mean 'gradient_clipping'?"),
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation", "did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stages": 2}}, "zero_optimization.stages", "did you mean 'stage'?"),
        (
            {"zero_optimization": {"offload_optimizer": {"devices": "cpu"}}},
            "zero_optimization.offload_optimizer.devices",
            "did you mean 'device'?",
        ),
        ({"bf16": {"enable": True}}, "bf16.enable", "did you mean 'enabled'?"),
        ({"flops_profiler": {"profile_steps": 3}}, "flops_profiler.profile_steps", "did you mean 'profile_step'?"),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, "data_types.grad_acum_dtype", "did you mean 'grad_accum_dtype'?"),
        ({"comms_logger": {"verbos": True}}, "comms_logger.verbos", "did you mean 'verbose'?"),
    ],
)
def test_a_misspelt_key_is_refused_at_every_depth(section, path, says):
    assert problems_of(section) == [(path, "unknown key", says)]


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        (
            {"zero_optimization": {"stage": 4}},
            "zero_optimization.stage",
            "expected one of 0, 1, 2, 3, found the number 4",
        ),
        ({"zero_optimization": 2}, "zero_optimization", "expected a mapping, found the number 2"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled", "expected true or false, found the number 1"),
        ({"gradient_clipping": "1k5"}, "gradient_clipping", "expected a number, found the text '1k5'"),
        ({"gradient_clipping": True}, "gradient_clipping", "expected a number, found true"),
        ({"train_batch_size": 1.5}, "train_batch_size", "expected a whole number, found the number 1.5"),
        (
            {"communication_data_type": "fp64"},
            "communication_data_type",
            "expected one of bf16, fp16, fp32, found the text 'fp64'",
        ),
        ({"comms_logger": {"prof_ops": "all"}}, "comms_logger.prof_ops", "expected a list, found the text 'all'"),
    ],
)
def test_a_value_of_another_type_is_refused(section, path, message):
    assert [problem[:2] for problem in problems_of(section)] == [(path, message)]


@pytest.mark.parametrize("name", [*OURS, *WITHOUT_EFFECT])
def test_what_would_be_accepted_and_do_nothing_is_refused(name):
    outer, _, inner = name.partition(".")
    ((path, message, _),) = problems_of({outer: {inner: {}}} if inner else {name: {}})
    assert path == name
    assert "taken from here" in message or "no effect" in message


def test_a_key_that_deepspeed_had_once_is_told_what_became_of_it():
    ((path, message, _),) = problems_of({"elasticity": {"enabled": True}})
    assert path == "elasticity"
    assert "has been removed" in message


def test_numbers_are_read_as_people_write_them_and_stay_whole():
    section = {"zero_optimization": {"reduce_bucket_size": "5e8", "stage3_max_live_parameters": "1g"}}
    value, problems = structured(section | {"gradient_clipping": "50%"})
    assert value["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert type(value["zero_optimization"]["reduce_bucket_size"]) is int
    assert value["gradient_clipping"] == 0.5
    assert [problem.path[-1] for problem in problems] == ["stage3_max_live_parameters"]


def test_auto_and_null_mean_that_the_key_is_left_out():
    section = {
        "train_batch_size": "auto",
        "bf16": None,
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
    }
    assert structured(section) == ({"zero_optimization": {"stage": 3}}, [])


def test_the_keys_of_arctic_training_recipes_pass():
    section = {
        "seq_parallel_communication_data_type": "bf16",
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "stage3_param_persistence_threshold": 1e4,
            "stage3_prefetch_bucket_size": "3e7",
            "memory_efficient_linear": False,
            "zero_quantized_weights": False,
        },
    }
    assert not problems_of(section)


def test_checking_imports_neither_torch_nor_deepspeed():
    code = (
        "import sys; from arctic_deepspeed.plugin import arctic_register_config_sections as sections;"
        "sections()['deepspeed'].structure_free({'zero_optimization': {'stage': 2}});"
        "print({'torch', 'deepspeed', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
def test_the_shipped_table_is_that_of_the_installed_deepspeed():
    """Write it anew with `python -m arctic_deepspeed.key_table` when DeepSpeed has a new version."""
    code = "import json; from arctic_deepspeed.key_table import installed; print(json.dumps(installed()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import json

    found = json.loads(done.stdout.strip().splitlines()[-1])
    if found["version"] == shipped()["version"]:
        assert found == shipped()
    else:
        missing = set(flat(found["keys"])) - set(flat(shipped()["keys"]))
        assert not missing


def flat(table, path=()):
    for name, words in table.items():
        yield ".".join((*path, name))
        if isinstance(words, dict):
            yield from flat(words, (*path, name))
