"""Seconds, peak memory and fill of the global packing plan, on one core.

Run it from the root of the repository:

    python tests/benchmarks/packing.py [--rows N]

Plans log-normal lengths at 8192 and 131072 tokens, and the quickstart tokenizer's lengths of docstring chats at 1024,
each in a process of its own. Nothing is asserted: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

TOKENIZER = "examples/quickstart/model"
MAKE_CHATS = Path(__file__).with_name("docstring_chats.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of the largest plan")
    parser.add_argument("--plan", nargs=3, help=argparse.SUPPRESS)  # kind of lengths, rows, max_length: a process each
    arguments = parser.parse_args()
    if arguments.plan:
        kind, rows, max_length = arguments.plan
        print(json.dumps(measure(LENGTHS[kind](int(rows), int(max_length)), int(max_length))))
        return
    print(f"{'lengths':16} {'rows':>12} {'pack':>8} {'seconds':>8} {'peak GiB':>9} {'packs':>11} {'fill':>9}")
    for kind, rows, max_length in (
        ("log-normal", arguments.rows // 10, 8192),
        ("log-normal", arguments.rows, 8192),
        ("log-normal", arguments.rows, 131_072),
        ("docstring chats", 0, 1024),
    ):
        command = [sys.executable, __file__, "--plan", kind, str(rows), str(max_length)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout)
        print(
            f"{kind:16} {figures['rows']:12,} {max_length:8,} {figures['seconds']:8.2f} {figures['peak']:9.2f} "
            f"{figures['packs']:11,} {figures['fill']:9.4%}"
        )


def measure(lengths: np.ndarray, max_length: int) -> dict[str, Any]:
    from arctic_training.packing import plan_packs

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    started = time.perf_counter()
    packs = plan_packs(lengths, max_length)
    return {
        "seconds": time.perf_counter() - started,
        "rows": len(lengths),
        "peak": peak_gib(),
        "packs": len(packs),
        "fill": int(lengths.sum()) / (len(packs) * max_length),
    }


def log_normal(rows: int, max_length: int) -> np.ndarray:
    """Lengths as of documents: a median of 400 tokens, one in a thousand longer than 8,000."""
    import numpy as np

    return np.clip(np.random.default_rng(0).lognormal(6, 1, rows), 1, max_length).astype(np.int64)


def docstring_chats(rows: int, max_length: int) -> np.ndarray:
    """Lengths of the chats that fit, of all there are."""
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, model_max_length=sys.maxsize)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        subprocess.run([sys.executable, str(MAKE_CHATS), str(path)], check=True)
        chats = [json.loads(line)["messages"] for line in path.open(encoding="utf-8")]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    lengths = np.array([len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
    return lengths[lengths <= max_length]


LENGTHS = {"log-normal": log_normal, "docstring chats": docstring_chats}


def peak_gib() -> float:
    """Most memory this process ever held; on Linux without what its parent held when it started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


if __name__ == "__main__":
    main()
