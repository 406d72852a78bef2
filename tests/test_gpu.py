"""What only an accelerator shows: the same training, on both engines, close to that of a CPU."""

import pytest

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def recipe(tiny_model, tiny_chats):
    return {
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "pack_samples": True, "max_length": 256, "num_proc": 1},
        "optimizer": {"learning_rate": 3e-3},
        "micro_batch_size": 2,
        "train_iters": 10,
        "train_log_iter_interval": 0,
    }


def losses(run):
    return [record["loss"] for record in run.metrics if record["kind"] == "train"]


def test_the_accelerator_is_taken_and_named(run_recipe, recipe):
    run = run_recipe(recipe)
    assert run.device.type == "cuda"
    assert run.engine_class.name == "deepspeed"
    assert run.engine_reason == "there is an accelerator"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_both_engines_train_alike(run_recipe, recipe, dtype):
    recipe["model"]["dtype"] = dtype
    recipe["optimizer"]["type"] = "adamw"
    one, other = (losses(run_recipe(recipe | {"engine": {"type": name}})) for name in ("torch", "deepspeed"))
    assert one == pytest.approx(other, rel=1e-3 if dtype == "fp32" else 2e-2)
    assert one[-1] < one[0]


def test_documents_in_a_pack_do_not_see_each_other(run_recipe, recipe):
    recipe |= {"train_iters": 1, "gradient_accumulation_steps": 32}
    packed = run_recipe(recipe)
    recipe["data"]["pack_samples"] = False
    alone = run_recipe(recipe)
    assert losses(packed) == pytest.approx(losses(alone), rel=1e-4)


def test_memory_and_utilisation_are_measured(run_recipe, recipe):
    record = run_recipe(recipe).metrics[-2]
    assert record["memory_bytes"] > 0
