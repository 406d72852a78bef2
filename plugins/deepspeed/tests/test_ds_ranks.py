"""What DeepSpeed computes on two ranks is what one process computes, in every ZeRO stage and precision."""

import json
import sys
from pathlib import Path
from subprocess import run as run_process

import pytest

from arctic_deepspeed.launcher import DeepSpeedLauncher

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

WORKER = str(Path(__file__).with_name("worker_runs.py"))
STAGES = (0, 1, 2, 3)
STEPS = 10


def recipe(directory, name, *, stage=None, precision="fp32", **keys):
    """The tiny recipe with a global batch of 8 rows; ``stage`` None is the torch engine in one process."""
    engine = {"engine": {"type": "torch"}} if stage is None else {"deepspeed": {"zero_optimization": {"stage": stage}}}
    return {
        "type": "tiny",
        "model": {"dtype": precision},
        "data": {"sources": [{"type": "tiny"}], "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "fused_adam", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "micro_batch_size": 8 if stage is None else 2,
        "gradient_accumulation_steps": 1 if stage is None else 2,
        "train_iters": STEPS,
        "train_log_iter_interval": 0,
        "run_dir": str(directory / "runs" / name),
        **engine,
        **keys,
    }


def two_rank_recipes(directory):
    recipes = {}
    for stage in STAGES:
        for precision in ("fp32", "bf16"):
            name = f"zero-{stage}-{precision}"
            keep = {"output_dir": str(directory / name), "auto_resume": True, "save_every_n_steps": 5}
            given = {"stage": stage, "precision": precision}
            recipes[name] = recipe(directory, name, **given)
            recipes[f"{name}-first"] = recipe(
                directory, f"{name}-first", **given, checkpoint=keep, exit_iteration_this_run=5
            )
            recipes[f"{name}-second"] = recipe(directory, f"{name}-second", **given, checkpoint=keep)
            recipes[f"{name}-poisoned"] = recipe(directory, f"{name}-poisoned", **given, poisoned_step=3)
        recipes[f"zero-{stage}-two-steps"] = recipe(directory, f"zero-{stage}-two-steps", stage=stage, train_iters=2)
    for stage in (1, 2, 3):
        section = {"stage": stage, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
        name = f"offload-{stage}"
        recipes[name] = recipe(directory, name, stage=stage) | {"deepspeed": {"zero_optimization": section}}
    other = {"output_dir": str(directory / "zero-2-fp32"), "auto_resume": True}
    recipes["other-stage"] = recipe(directory, "other-stage", stage=1, checkpoint=other)
    return recipes


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The reports and weights of all runs: one process for the torch engine, one launch of two ranks for DeepSpeed."""
    import torch

    directory = tmp_path_factory.mktemp("ranks")
    alone = {f"torch-{precision}": recipe(directory, precision, precision=precision) for precision in ("fp32", "bf16")}
    alone |= {
        f"alone-{stage}": recipe(directory, f"alone-{stage}", stage=stage, micro_batch_size=4) for stage in STAGES
    }
    (directory / "alone.json").write_text(json.dumps(alone))
    run_process([sys.executable, WORKER, directory / "alone.json", directory], check=True)
    (directory / "pair.json").write_text(json.dumps(two_rank_recipes(directory)))
    assert DeepSpeedLauncher().launch(WORKER, [f"{directory}/pair.json", str(directory)], ["--num_gpus", "2"]) == 0
    reports = {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}
    for path in directory.glob("*.pt"):
        reports[path.stem]["weights"] = torch.load(path)
    return reports


def difference(one, other):
    assert list(one) == list(other)
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


@pytest.mark.parametrize("name", [f"zero-{stage}-fp32" for stage in STAGES] + [f"alone-{stage}" for stage in STAGES])
def test_ten_steps_are_those_of_the_torch_engine(results, name):
    ours, theirs = results[name], results["torch-fp32"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert ours["learning_rate"] == theirs["learning_rate"]
    assert difference(ours["weights"], theirs["weights"]) < 1e-5


def test_the_pair_was_a_pair(results):
    assert results["zero-2-fp32"]["ranks"] == 2
    assert results["torch-fp32"]["ranks"] == 1


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_the_optimizer_changes_no_number(results, stage):
    assert difference(results[f"offload-{stage}"]["weights"], results["torch-fp32"]["weights"]) < 1e-5


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_keeps_fp32_master_weights_and_sums(results, stage):
    """Rounded gradients or sums would set the stages apart: they add up in another order, and in fp32 that is
    little."""
    ours = results[f"zero-{stage}-bf16"]
    assert ours["loss"] == pytest.approx(results["zero-2-bf16"]["loss"], rel=1e-3)
    assert ours["loss"] == pytest.approx(results["torch-bf16"]["loss"], rel=5e-3)
    assert {tensor.dtype.itemsize for tensor in ours["weights"].values()} == {2}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_training_goes_on_exactly_where_it_stopped(results, stage, precision):
    whole, first, second = (results[f"zero-{stage}-{precision}{part}"] for part in ("", "-first", "-second"))
    assert second["first_step"] == 5
    assert first["loss"] + second["loss"] == whole["loss"]
    assert difference(second["weights"], whole["weights"]) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_not_finite_on_one_rank_is_applied_on_none(results, stage, precision):
    poisoned = results[f"zero-{stage}-{precision}-poisoned"]
    assert "step 3" in poisoned["error"]
    assert all(tensor.isfinite().all() for tensor in poisoned["weights"].values())
    if precision == "fp32":
        assert difference(poisoned["weights"], results[f"zero-{stage}-two-steps"]["weights"]) == 0


def test_a_checkpoint_of_another_stage_is_taken_over(results):
    assert results["other-stage"]["error"] is None
