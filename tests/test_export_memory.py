"""A model of twenty files is written with little more memory than the model: during a run, and exported afterwards."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("arctic_sft")
pytest.importorskip("arctic_deepspeed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]

MOST = 1.3
"""Peak memory as a multiple of the model's."""
LAYERS = 20
SHARD = {"fp32": 12_200_000, "bf16": 6_100_000}
"""Bytes of a layer, and some more."""

MEMORY = '''
import json
from pathlib import Path


def memory(name):
    """Bytes of this process: VmRSS now, VmHWM the most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
'''

WATCHING = (
    MEMORY
    + """
from arctic_training import hookimpl


@hookimpl
def arctic_before_save(path, step, trainer):
    forget_peak()
    trainer.memory_before = memory("VmRSS")


@hookimpl
def arctic_after_save(path, step, trainer):
    figures = {"before": trainer.memory_before, "peak": memory("VmHWM")}
    Path(path).parent.with_suffix(".json").write_text(json.dumps(figures))
"""
)

EXPORTING = (
    MEMORY
    + """
import sys

import deepspeed
import torch
import transformers
from transformers import AutoModelForCausalLM

from arctic_huggingface.export import export
from arctic_huggingface.sources import find_source
from arctic_training.plugins import create_plugin_manager

checkpoint, out, small, shard = sys.argv[1:]
manager = create_plugin_manager()
export(find_source(Path(small), manager, print), Path(out + "-small"))  # whatever is imported only when it is used
source = find_source(Path(checkpoint), manager, print)
forget_peak()
before = memory("VmRSS")
export(source, Path(out), max_shard_size=int(shard))
print(json.dumps({"before": before, "peak": memory("VmHWM")}))
"""
)


def recipe(home, engine, dtype, layers):
    name = f"{engine}-{layers}"
    sizes = {"hidden_size": 512, "intermediate_size": 1280, "num_hidden_layers": layers, "num_key_value_heads": 4}
    saved = {"save_end_of_training": True}
    return {
        "type": "sft",
        "model": {
            "name_or_path": str(home / "model"),
            "dtype": dtype,
            "init": "random",
            "hf_config_kwargs": {**sizes, "head_dim": 128},
        },
        "code": str(home / "watching.py"),
        "data": {"sources": [str(home / "chats.jsonl")], "max_length": 64, "div_length": 16, "dl_num_workers": 0},
        "engine": {"type": engine},
        "deepspeed": {"zero_optimization": {"stage": 3}} if engine == "deepspeed" else {},
        "train_iters": 1,
        "run_dir": str(home / "runs" / name),
        "checkpoint": [
            {"output_dir": str(home / name), **saved},
            {"type": "huggingface", "output_dir": str(home / f"{name}-hf"), "max_shard_size": SHARD[dtype], **saved},
        ],
    }


@pytest.fixture(scope="module", params=[("torch", "fp32"), ("deepspeed", "bf16")], ids="-".join)
def trained(request, tmp_path_factory):
    """A folder with checkpoints of a model of one layer and of twenty, and what their saves took."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    home = tmp_path_factory.mktemp("memory")
    make_tiny_llama(home / "model")
    (home / "watching.py").write_text(WATCHING)
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    (home / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    for layers in (1, LAYERS):
        path = home / f"{layers}.json"
        path.write_text(json.dumps(recipe(home, *request.param, layers)))
        subprocess.run([sys.executable, "-m", "arctic_cli", "run", path], check=True, cwd=home)
    return home, *request.param


def bytes_of(folder):
    files = list(folder.glob("*.safetensors"))
    assert len(files) >= LAYERS
    return sum(path.stat().st_size for path in files)


def test_writing_a_model_during_a_run_takes_little_more_than_the_model_that_is_there(trained):
    home, engine, _ = trained
    name = f"{engine}-{LAYERS}-hf"
    figures = json.loads((home / f"{name}.json").read_text())
    extra = (figures["peak"] - figures["before"]) / bytes_of(home / name / "global_step_1")
    print(f"{engine}: {1 + extra:.2f} of the model")
    assert 1 + extra < MOST


def test_exporting_a_checkpoint_takes_little_more_than_the_model(trained):
    home, engine, dtype = trained
    arguments = [home / f"{engine}-{LAYERS}", home / "out", home / f"{engine}-1", str(SHARD[dtype])]
    done = subprocess.run(
        [sys.executable, "-c", EXPORTING, *arguments], check=True, capture_output=True, text=True, timeout=300
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    share = (figures["peak"] - figures["before"]) / bytes_of(home / "out")
    print(f"{engine}: {share:.2f} of the model")
    assert share < MOST
