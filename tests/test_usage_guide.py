"""Every code block of the user guide, as a user would type it, with model and data replaced by local ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arctic_cli.legacy import main as arctic_training

MODEL = "local/Llama-Instruct"
DATA = "local/chats.jsonl"

MINIMAL_RECIPE = f"""\
model:
  name_or_path: {MODEL}
data:
  sources:
    - {DATA}
checkpoint:
  - type: huggingface
    save_end_of_training: true
    output_dir: ./fine-tuned-model
"""

CUSTOM_RECIPE = f"""\
type: my_custom_trainer
code: path/to/custom_trainers.py
model:
  name_or_path: {MODEL}
data:
  sources:
    - {DATA}
"""

# Stands where the guide says "custom loss function implementation"; it leaves a line for each call. Like many
# a user's, it takes the labels out of the batch.
LOSS = """\
        import torch

        labels = batch.pop("labels")
        logits = self.model(**batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        with open("calls.txt", "a") as file:
            file.write(f"{type(self).__name__} {getattr(self.model_unwrapped, 'made_by', 'transformers')}\\n")
        return loss
"""

CUSTOM_TRAINER = f"""\
from arctic_training import SFTTrainer, register

@register
class CustomTrainer(SFTTrainer):
    name = "my_custom_trainer"

    def loss(self, batch):
{LOSS}
"""

# Stands where the guide says "custom model implementation".
CREATE_MODEL = """\
        from transformers import LlamaForCausalLM

        config.num_hidden_layers = 1
        model = LlamaForCausalLM(config)
        model.made_by = "CustomModelFactory"
        return model
"""

CUSTOM_FACTORY_AND_TRAINER = f"""\
from arctic_training import register
from arctic_training.model import HFModelFactory
from arctic_training import SFTTrainer

class CustomModelFactory(HFModelFactory):
    name = "my_custom_model_factory"

    def create_model(self, config):
{CREATE_MODEL}

@register
class CustomTrainer(SFTTrainer):
    name = "my_custom_trainer"
    model_factory: CustomModelFactory

    def loss(self, batch):
{LOSS}
"""

PYTHON_API = f"""\
from arctic_training import register
from arctic_training.model import HFModelFactory
from arctic_training import SFTTrainer
from arctic_training import get_config

class CustomModelFactory(HFModelFactory):
    name = "my_custom_model_factory"

    def create_model(self, config):
{CREATE_MODEL}

@register
class CustomTrainer(SFTTrainer):
    name = "my_custom_trainer"
    model_factory: CustomModelFactory

    def loss(self, batch):
{LOSS}

if __name__ == "__main__":
    config_dict = {{
        "type": "my_custom_trainer",
        "model": {{
            "name_or_path": "{MODEL}"
        }},
        "data": {{
            "sources": ["{DATA}"]
        }},
        "checkpoint": [
            {{
                "type": "huggingface",
                "save_end_of_training": True,
                "output_dir": "./fine-tuned-model"
            }}
        ]
    }}

    config = get_config(config_dict)
    trainer = CustomTrainer(config)
    trainer.train()
"""

NUM_CHATS = 8


@pytest.fixture
def home(arctic_home: Path, tiny_model: Path, tiny_chats: Path) -> Path:
    """A working directory with the model and the chats that the blocks name."""
    local = arctic_home / "local"
    local.mkdir()
    tiny_model.rename(arctic_home / MODEL)
    chats = tiny_chats.read_text().splitlines(keepends=True)[:NUM_CHATS]
    (arctic_home / DATA).write_text("".join(chats))
    return arctic_home


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run_script(*words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, env=environment)


def script(name: str) -> str:
    """A console script of the running installation."""
    return str(Path(sys.executable).with_name(name))


def the_run(home: Path) -> Path:
    (directory,) = (home / "runs").iterdir()
    return directory


def train_records(run_dir: Path) -> list[dict]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "train"]


def calls(home: Path) -> list[str]:
    return (home / "calls.txt").read_text().splitlines()


def assert_transformers_loads(path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    AutoTokenizer.from_pretrained(path)


def test_the_minimal_recipe_trains_with_the_command_of_the_guide(home):
    write(home / "path/to/recipe.yaml", MINIMAL_RECIPE)
    done = run_script(script("arctic_training"), "path/to/recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in train_records(the_run(home))] == list(range(1, NUM_CHATS + 1))
    assert_transformers_loads(home / "fine-tuned-model" / f"global_step_{NUM_CHATS}")


def test_a_trainer_in_train_py_beside_the_recipe_is_found(home):
    write(home / "path/to/train.py", CUSTOM_TRAINER)
    recipe = write(home / "path/to/recipe.yaml", f"type: my_custom_trainer\n{MINIMAL_RECIPE}")
    assert arctic_training([str(recipe)]) == 0
    assert calls(home) == ["CustomTrainer transformers"] * NUM_CHATS


def test_train_py_beside_the_recipe_is_left_alone_with_no_code(home, capsys):
    write(home / "path/to/train.py", CUSTOM_TRAINER)
    recipe = write(home / "path/to/recipe.yaml", f"type: my_custom_trainer\n{MINIMAL_RECIPE}")
    assert arctic_training([str(recipe), "--no-code"]) == 2
    assert "there is no trainer 'my_custom_trainer'" in capsys.readouterr().err


def test_a_trainer_in_the_file_that_code_names_is_found_relative_to_the_recipe(home):
    write(home / "recipes/path/to/custom_trainers.py", CUSTOM_TRAINER)
    recipe = write(home / "recipes/recipe.yaml", CUSTOM_RECIPE)
    assert arctic_training([str(recipe)]) == 0
    assert calls(home) == ["CustomTrainer transformers"] * NUM_CHATS


def test_a_trainer_counts_as_registered_without_the_decorator_too(home):
    write(home / "path/to/custom_trainers.py", CUSTOM_TRAINER.replace("@register\n", ""))
    recipe = write(home / "recipe.yaml", CUSTOM_RECIPE)
    assert arctic_training([str(recipe)]) == 0
    assert calls(home) == ["CustomTrainer transformers"] * NUM_CHATS


def test_a_model_factory_given_by_annotation_builds_the_model(home):
    write(home / "path/to/custom_trainers.py", CUSTOM_FACTORY_AND_TRAINER)
    recipe = write(home / "recipe.yaml", CUSTOM_RECIPE)
    assert arctic_training([str(recipe)]) == 0
    assert calls(home) == ["CustomTrainer CustomModelFactory"] * NUM_CHATS


def test_the_loss_that_is_logged_is_the_one_that_the_trainer_returns(home):
    write(home / "train.py", CUSTOM_TRAINER.replace("return loss", "return 0 * loss + 2.5"))
    recipe = write(home / "recipe.yaml", f"type: my_custom_trainer\n{MINIMAL_RECIPE}")
    assert arctic_training([str(recipe)]) == 0
    assert [record["loss"] for record in train_records(the_run(home))] == pytest.approx([2.5] * NUM_CHATS)


@pytest.mark.distributed
def test_launcher_arguments_train_on_two_ranks(home):
    write(home / "path/to/recipe.yaml", MINIMAL_RECIPE)
    done = run_script(script("arctic_training"), "path/to/recipe.yaml", "--num_gpus", "2")
    assert done.returncode == 0, done.stderr
    run_dir = the_run(home)
    assert json.loads((run_dir / "run.json").read_text())["world_size"] == 2
    assert len(train_records(run_dir)) == NUM_CHATS // 2
    assert sorted(path.name for path in (run_dir / "logs").glob("rank-*.log")) == ["rank-0.log", "rank-1.log"]
    assert_transformers_loads(home / "fine-tuned-model" / f"global_step_{NUM_CHATS // 2}")


@pytest.mark.distributed
def test_a_custom_trainer_trains_on_two_ranks(home):
    write(home / "path/to/train.py", CUSTOM_FACTORY_AND_TRAINER)
    write(home / "path/to/recipe.yaml", f"type: my_custom_trainer\n{MINIMAL_RECIPE}")
    done = run_script(script("arctic_training"), "path/to/recipe.yaml", "--num_gpus", "2")
    assert done.returncode == 0, done.stderr
    assert calls(home) == ["CustomTrainer CustomModelFactory"] * NUM_CHATS


def test_the_python_api_trains_from_a_script(home):
    write(home / "script.py", PYTHON_API)
    done = run_script(sys.executable, "script.py")
    assert done.returncode == 0, done.stderr
    assert calls(home) == ["CustomTrainer CustomModelFactory"] * NUM_CHATS
    assert_transformers_loads(home / "fine-tuned-model" / f"global_step_{NUM_CHATS}")
