"""Prepares chats with Arctic through a recipe, for `data_preparation.py`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(chats_path: str, model_path: str, folder: str, num_proc: str, max_length: str) -> None:
    recipe = {
        "type": "sft",
        "run_dir": f"{folder}/run",
        "model": {"name_or_path": model_path, "init": "random", "dtype": "fp32"},
        "engine": {"type": "torch"},
        "data": {
            "sources": [{"type": "huggingface_instruct", "name_or_path": chats_path}],
            "cache_dir": f"{folder}/cache",
            "max_length": int(max_length),
            "mask_inputs": True,
            "pack_samples": True,
            "num_proc": int(num_proc),
        },
    }
    seconds, rows = prepared(recipe)
    lengths = rows.lengths()
    fill = lengths.sum() / (len(lengths) * int(max_length))
    print(json.dumps({"seconds": seconds, "packs": len(lengths), "fill": fill}))


def prepared(recipe: dict[str, Any]) -> tuple[float, Any]:
    """Seconds from the first look at the sources to a written cache entry, and its rows."""
    import datasets  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer

    from arctic_training import get_config
    from arctic_training.run import Run

    for kind in (AutoConfig, AutoTokenizer):  # imports what they need: imports count for no contender
        kind.from_pretrained(recipe["model"]["name_or_path"])
    run = Run(get_config(recipe))
    with run.only_preparing(rows=False):
        started = time.perf_counter()
        run.prepare_data()
        return time.perf_counter() - started, run.rows["train"]


if __name__ == "__main__":
    main(*sys.argv[1:])
