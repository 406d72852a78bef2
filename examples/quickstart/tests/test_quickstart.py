"""The quickstart: what it ships, and that one command turns it into a model that plain transformers loads."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "examples" / "quickstart"
QUESTION = "What does `str.isalpha` do?"


def chats(name: str) -> list[list[dict[str, str]]]:
    lines = (QUICKSTART / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def answers(name: str) -> set[str]:
    return {message["content"] for chat in chats(name) for message in chat if message["role"] == "assistant"}


@pytest.mark.parametrize("name", ["train", "eval"])
def test_every_chat_is_a_question_and_its_answer_once_or_twice(name: str) -> None:
    assert {tuple(message["role"] for message in chat) for chat in chats(name)} == {
        ("user", "assistant"),
        ("user", "assistant") * 2,
    }


def test_the_evaluation_asks_nothing_that_was_trained_on() -> None:
    assert answers("train").isdisjoint(answers("eval"))


def test_the_template_marks_the_answers_and_their_ends() -> None:
    tokenizer = load_tokenizer()
    chat = chats("train")[0]
    encoded = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    trained = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(trained) == chat[1]["content"] + tokenizer.eos_token


def test_the_tokenizer_gives_back_every_text_it_is_given() -> None:
    tokenizer = load_tokenizer()
    text = "Grüße, 世界! \t`x[0]`\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_model_is_small_and_fits_its_tokenizer() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(QUICKSTART / "model")
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert 3e6 <= model.num_parameters() <= 6e6
    tokenizer = load_tokenizer()
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def load_tokenizer() -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(QUICKSTART / "model")


TRAIN = """
import sys, torch
from arctic_training import SFTTrainer, get_config
folder, question = sys.argv[1:]
config = get_config(
    "examples/quickstart/recipe.yaml", [f"checkpoint.0.output_dir={folder}/model", f"run_dir={folder}/run"]
)
trainer = SFTTrainer(config)
trainer.train()
ids = trainer.tokenizer(question, return_tensors="pt")["input_ids"]
with torch.no_grad():
    trainer.model_unwrapped.eval()
    torch.save(trainer.model_unwrapped(ids, use_cache=False).logits, f"{folder}/logits.pt")
"""

USE = """
import glob, json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, question = sys.argv[1:]
[path] = glob.glob(f"{folder}/model/global_step_*")
tokenizer = AutoTokenizer.from_pretrained(path)
model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
with torch.no_grad():
    logits = model(tokenizer(question, return_tensors="pt")["input_ids"], use_cache=False).logits
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
written = model.generate(**prompt)[0, prompt["input_ids"].shape[1]:]
print(json.dumps({
    "arctic": [name for name in sys.modules if name.startswith("arctic")],
    "keys": {name: sorted(map(str, keys)) for name, keys in report.items()},
    "same_logits": torch.equal(logits, torch.load(f"{folder}/logits.pt")),
    "answer": tokenizer.decode(written, skip_special_tokens=True),
}))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    python("-c", TRAIN, str(folder), QUESTION)
    return folder


@pytest.fixture(scope="module")
def used(trained: Path) -> dict[str, Any]:
    """What a process that knows nothing of Arctic finds in the folder."""
    result: dict[str, Any] = json.loads(python("-c", USE, str(trained), QUESTION).splitlines()[-1])
    return result


@pytest.mark.slow
def test_the_evaluation_loss_falls_below_three_fifths_of_the_first(trained: Path) -> None:
    lines = (trained / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "eval"]
    losses = {record["step"]: record["loss"] for record in records}
    assert losses[0] == pytest.approx(math.log(4096), rel=0.1)  # it knows nothing yet
    assert losses[max(losses)] < 0.6 * losses[0]


@pytest.mark.slow
def test_transformers_alone_loads_the_very_model_that_was_trained(used: dict[str, Any]) -> None:
    assert used["arctic"] == []
    assert not any(used["keys"].values()), used["keys"]
    assert used["same_logits"]


@pytest.mark.slow
def test_it_answers_in_the_prose_of_docstrings(used: dict[str, Any]) -> None:
    words = {word for answer in answers("train") for word in answer.split()}
    written = used["answer"].split()
    assert 4 <= len(written) <= 40
    assert used["answer"].startswith("Return True if")
    assert sum(word in words for word in written) >= 0.9 * len(written)


def python(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
