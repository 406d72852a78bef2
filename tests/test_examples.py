"""Every example runs as its reader would run it, offline, in a copy; and does what it says it shows."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
OPENINGS = {
    path.relative_to(EXAMPLES).as_posix(): path.read_text()[:800]
    for path in sorted([*EXAMPLES.glob("*/*.yaml"), EXAMPLES / "python-api/train.py"])
}
ELSEWHERE = {
    "quickstart/recipe.yaml": "in full in a test of its own",
    "lora/recipe.yaml": "after the quickstart, whose model it takes, in a test of its own",
    "distill/recipe.yaml": "after the quickstart, whose model is its teacher, in a test of its own",
    "third-party-plugin/recipe.yaml": "with the plugin installed by pip, in test_third_party_plugin",
    "noisy-embeddings/recipe.yaml": "in the example's own tests",
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    copy = tmp_path_factory.mktemp("somewhere") / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("runs", "output", "build", "tests", "__pycache__"))
    return copy


@pytest.mark.parametrize("example", sorted(OPENINGS.keys() - ELSEWHERE.keys()))
def test_an_example_runs_by_the_command_it_opens_with(example, copied, tmp_path):
    command = shlex.split(line(OPENINGS[example], "Run"))
    program = {"arctic": ["-m", "arctic_cli"], "python": []}[command[0]]
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ARCTIC_")}
    environment |= {"ARCTIC_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *program, *command[1:], "train_iters=3", f"run_dir={tmp_path / 'run'}"],
        cwd=copied.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert len(losses) == 3
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.slow
def test_an_adapter_is_trained_beside_the_model_of_the_quickstart(copied, tmp_path):
    whole, _ = ran(copied, tmp_path, "quickstart", "train_iters=2")
    assert len(whole) == 2
    model = "model.name_or_path=examples/quickstart/output/global_step_2"
    losses, _ = ran(copied, tmp_path, "lora", "train_iters=2", model)
    assert len(losses) == 2
    assert (copied / "lora/output/global_step_2/adapter_model.safetensors").stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.long
def test_an_adapter_of_three_percent_comes_within_ten_percent_of_training_all(copied, tmp_path):
    """The README of the peft plugin has the figures."""
    ran(copied, tmp_path, "quickstart")
    _, adapter = ran(copied, tmp_path, "lora")
    said = (tmp_path / "lora-0/logs/rank-0.log").read_text()
    assert float(re.search(r"parameters trained \((\S+) %\)", said)[1]) <= 3
    _, whole = ran(copied, tmp_path, "lora", "model.peft_config=null", "optimizer.learning_rate=1e-3")
    assert adapter[-1] <= 1.1 * whole[-1]
    assert adapter[-1] < adapter[0]


@pytest.mark.slow
def test_a_student_learns_from_the_model_of_the_quickstart(copied, tmp_path):
    ran(copied, tmp_path, "quickstart", "train_iters=2")
    teacher = "teacher.name_or_path=examples/quickstart/output/global_step_2"
    losses, _ = ran(copied, tmp_path, "distill", "train_iters=2", teacher)
    assert len(losses) == 2
    assert (copied / "distill/output/distilled/global_step_2/model.safetensors").is_file()


def ran(copied, tmp_path, example, *overrides):
    """The losses of training and of evaluation of an example that was run in a copy."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ARCTIC_")}
    environment |= {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    recipe, run_dir = f"examples/{example}/recipe.yaml", tmp_path / f"{example}-{len(overrides)}"
    command = [sys.executable, "-m", "arctic_cli", "run", recipe, *overrides, f"run_dir={run_dir}"]
    done = subprocess.run(command, cwd=copied.parent, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    records = [json.loads(text) for text in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return tuple([record["loss"] for record in records if record["kind"] == kind] for kind in ("train", "eval"))


@pytest.mark.parametrize("example", sorted(OPENINGS))
def test_an_example_opens_with_what_it_needs_how_it_runs_and_an_override(example):
    opening = OPENINGS[example]
    assert line(opening, "Needs")
    run, override = line(opening, "Run"), line(opening, "Override")
    assert override.startswith(run)
    assert re.fullmatch(r"[\w.]+=\S+", override.removeprefix(run).strip())


def test_every_folder_of_examples_is_tested():
    folders = {path.name for path in EXAMPLES.iterdir() if (path / "README.md").is_file()}
    assert folders <= {example.partition("/")[0] for example in OPENINGS}


def test_the_custom_trainer_uses_the_factory_of_its_annotation_and_its_own_loss(build_run, copied):
    import torch

    from arctic_training.loss import cross_entropy

    with build_run(copied / "custom-trainer/recipe.yaml") as run, torch.no_grad():
        assert type(run.component("model")).__name__ == "CustomModelFactory"
        state = run.trainer.model_unwrapped.state_dict()
        inward, outward = (state[f"model.layers.0.self_attn.{name}_proj.weight"].std().item() for name in "qo")
        assert outward == pytest.approx(inward / 8**0.5, rel=0.05)  # four layers of two branches
        batch = next(run.trainer.train_dataloader.epoch(0))[0]
        plain = cross_entropy(run.trainer.model, batch)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = run.trainer.model(**inputs).logits.double()
        trained = batch["labels"][:, 1:] != -100
        z_loss = 1e-4 * logits[:, :-1][trained].exp().sum(-1).log().square().mean()
        expected = (plain.sum / plain.weight + z_loss).item()
        assert run.trainer.loss(batch).item() == pytest.approx(expected, rel=1e-5)
        assert z_loss > 1e-3


def test_the_smoothed_trainer_reads_its_own_key_of_the_recipe(build_run, copied):
    import torch

    with build_run(copied / "custom-trainer/recipe-with-code.yaml", "smoothing=0.25") as run, torch.no_grad():
        batch = next(run.trainer.train_dataloader.epoch(0))[0]
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        log_p = run.trainer.model(**inputs).logits[:, :-1].double().log_softmax(-1)
        labels = batch["labels"][:, 1:]
        trained = labels != -100
        of_label = log_p[trained].gather(-1, labels[trained][:, None]).sum()
        expected = -(0.75 * of_label + 0.25 * log_p[trained].mean(-1).sum())
        total, weight = run.trainer.loss(batch)
        assert total.item() == pytest.approx(expected.item(), rel=1e-5)
        assert weight == trained.sum()


def line(opening: str, name: str) -> str:
    """What stands behind ``Run:``, ``Needs:`` or ``Override:`` in the opening comment of an example."""
    (found,) = re.findall(rf"^#? *{name}[^:\n]*: *(.+)$", opening, flags=re.MULTILINE)
    return found
