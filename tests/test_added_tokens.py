"""Added tokens under every ZeRO stage: rows that are there before anything is partitioned, and come back in exports."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from arctic_training.testing.tiny_llama import make_tiny_llama

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_two_ranks_of_every_stage_train_added_tokens_as_one_process_does(tmp_path, tiny_chats, tied):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_model = make_tiny_llama(tmp_path / "model", tied=tied)

    def losses(name, *words, **keys):
        recipe = {
            "type": "sft",
            "run_dir": name,
            "model": {"name_or_path": str(tiny_model), "dtype": "fp32", "pad_vocabulary_to_multiple_of": 16},
            "tokenizer": {"added_tokens": ["course"], "added_special_tokens": ["<tool>"]},
            "data": {"sources": [str(tiny_chats)], "num_proc": 1, "dl_num_workers": 0, "max_length": 128},
            "optimizer": {"type": "adamw", "learning_rate": 1e-2},
            "scheduler": {"type": "constant"},
            "checkpoint": {"type": "huggingface", "output_dir": f"{name}-export", "save_end_of_training": True},
            "train_iters": 3,
        }
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe | keys))
        environment = os.environ | {"ARCTIC_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "arctic_cli", "run", f"{name}.yaml", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["kind"] == "train"]

    alone = losses("alone", engine={"type": "torch"}, micro_batch_size=2)
    assert alone[-1] < alone[0]
    for stage in range(4):
        name = f"zero-{stage}"
        assert losses(name, "--num_gpus", "2", deepspeed={"zero_optimization": {"stage": stage}}) == pytest.approx(
            alone, rel=1e-4
        )
        folder = tmp_path / f"{name}-export" / "global_step_3"
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
        assert model.config.vocab_size % 16 == 0
        assert model.config.vocab_size >= len(AutoTokenizer.from_pretrained(folder))
        assert AutoTokenizer.from_pretrained(folder).tokenize("of course<tool>")[-2:] == ["course", "<tool>"]
