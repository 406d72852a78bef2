"""Steps while a checkpoint is written, against steps without: in the background, and at once.

    python tests/benchmarks/background_saves.py [--steps N] [--hidden N] [--layers N]

One process trains a Llama of about 100 M parameters with random weights in fp32, on two threads, and saves every six
steps. Printed are the median seconds of steps during which nothing was written, of those during which a checkpoint was
being written, what the loop itself waited for at a save, and the peak memory. Nothing is asserted: machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/quickstart/model"
EVERY = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--mode", choices=("none", "background", "at once"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments)))
        return
    columns = ("parameters", 12), ("step, s", 10), ("during, s", 11), ("ratio", 8), ("wait, s", 9), ("write, s", 10)
    print("saves".ljust(12) + "".join(name.rjust(width) for name, width in (*columns, ("peak GiB", 10))))
    for mode in ("none", "background", "at once"):
        words = [f"--{name}={value}" for name, value in vars(arguments).items() if name != "mode"]
        done = subprocess.run([sys.executable, __file__, *words, "--mode", mode], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        show(mode, json.loads(done.stdout.splitlines()[-1]))


def show(mode: str, found: dict[str, Any]) -> None:
    def figure(value: float | None, width: int) -> str:
        return f"{value:>{width}.2f}" if value is not None else f"{'-':>{width}}"

    ratio = found["during"] / found["step"] if found["during"] else None
    parameters = f"{found['parameters'] / 1e6:.0f} M"
    print(
        f"{mode:<12}{parameters:>12}{figure(found['step'], 10)}{figure(found['during'], 11)}{figure(ratio, 8)}"
        f"{figure(found['wait'], 9)}{figure(found['write'], 10)}{figure(found['peak'], 10)}",
        flush=True,
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in this process and note each step."""
    import torch

    from arctic_training import hookimpl
    from arctic_training.api import configure
    from arctic_training.run import Run

    torch.set_num_threads(2)

    class Watch:
        def __init__(self) -> None:
            self.plain: list[float] = []
            self.during: list[float] = []
            self.waits: list[float] = []
            self.writes: list[float] = []
            self.parameters = 0

        @hookimpl
        def arctic_step_start(self, step: int, batch: Any, trainer: Any) -> None:
            self.parameters = trainer.run.num_parameters
            self.busy = is_busy(trainer.run)

        @hookimpl
        def arctic_step_end(self, step: int, metrics: Any, trainer: Any) -> None:
            if step > 2:
                (self.during if self.busy or is_busy(trainer.run) else self.plain).append(metrics["step_seconds"])

        @hookimpl
        def arctic_before_save(self, path: str, step: int, trainer: Any) -> None:
            self.began = time.perf_counter()

        @hookimpl
        def arctic_write_checkpoint(self, path: str, engine: Any, trainer: Any) -> None:
            self.waits.append(time.perf_counter() - self.began)

        @hookimpl
        def arctic_after_save(self, path: str, step: int, trainer: Any) -> None:
            self.writes.append(time.perf_counter() - self.began)

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["ARCTIC_HOME"] = folder
        watch = Watch()
        config = configure(recipe(arguments, Path(folder)))
        config.plugin_manager.register(watch, "watch")
        Run(config).execute()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    waits = watch.writes if arguments.mode == "at once" else watch.waits
    middle = {"step": watch.plain, "during": watch.during, "wait": waits, "write": watch.writes}
    return {
        **{name: statistics.median(values) if values else None for name, values in middle.items()},
        "parameters": watch.parameters,
        "peak": peak,
    }


def is_busy(run: Any) -> bool:
    return run.pending is not None and run.pending.writer.is_busy


def recipe(arguments: argparse.Namespace, folder: Path) -> Path:
    text = {
        "type": "sft",
        "train_iters": arguments.steps,
        "train_log_iter_interval": 0,
        "model": {
            "name_or_path": str(MODEL),
            "init": "random",
            "dtype": "fp32",
            "disable_activation_checkpoint": True,
            "hf_config_kwargs": {
                "hidden_size": arguments.hidden,
                "num_hidden_layers": arguments.layers,
                "intermediate_size": 4 * arguments.hidden * 2 // 3,
                "num_attention_heads": 12,
                "num_key_value_heads": 12,
                "head_dim": arguments.hidden // 12,
            },
        },
        "data": {
            "sources": [str(ROOT / "examples/quickstart/data/train.jsonl")],
            "max_length": 256,
            "pack_samples": True,
            "num_proc": 1,
            "dl_num_workers": 0,
        },
        "optimizer": {"type": "adamw", "learning_rate": 1e-4},
        "engine": {"type": "torch"},
        "checkpoint": []
        if arguments.mode == "none"
        else {
            "output_dir": str(folder / "kept"),
            "save_every_n_steps": EVERY,
            "keep_last": 1,
            "background": arguments.mode == "background",
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(text))
    return path


if __name__ == "__main__":
    main()
