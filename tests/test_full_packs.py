"""The packing plan of real chats: all of the standard library's docstrings, by the quickstart's tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from arctic_training.packing import plan_packs

ROOT = Path(__file__).parents[1]


def test_docstring_chats_fill_packs_of_1024_to_99_percent(tmp_path):
    path = tmp_path / "chats.jsonl"
    subprocess.run([sys.executable, ROOT / "tests/benchmarks/docstring_chats.py", path], check=True, timeout=60)
    chats = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/quickstart/model", model_max_length=sys.maxsize)
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    lengths = np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    lengths = lengths[lengths <= 1024]
    assert len(lengths) > 2000
    assert lengths.sum() / (len(plan_packs(lengths, 1024)) * 1024) > 0.99
