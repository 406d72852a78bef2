"""Step time of a recipe's training against a bare PyTorch loop over the same batches, in turn in one process.

Run it from the root of the repository:

    python tests/benchmarks/step_time.py [RECIPE] [--rounds N] [--steps N]

Prints the median seconds of a step of each, and their ratio. Nothing is asserted: machines are noisy.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from typing import Any

DEFAULT_RECIPE = "examples/quickstart/recipe.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default=DEFAULT_RECIPE)
    parser.add_argument("--rounds", type=int, default=8, help="how often the two take turns")
    parser.add_argument("--steps", type=int, default=5, help="steps in a turn")
    arguments = parser.parse_args()

    from arctic_training import get_config
    from arctic_training.run import Run

    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"run_dir={folder}",
            "checkpoint=[]",
            "train_log_iter_interval=0",
            "engine.type=torch",
            "model.dtype=fp32",
        ]
        run = Run(get_config(arguments.recipe, overrides))
        run.set_up()
        try:
            compare(run.trainer, arguments.rounds, arguments.steps)
        finally:
            run.tear_down()


def compare(trainer: Any, rounds: int, steps: int) -> None:
    import torch

    trainer.model.train()
    bare = BareLoop(copy.deepcopy(trainer.model_unwrapped), trainer.engine.learning_rate)
    batches = batches_of(trainer)
    seconds: dict[str, list[float]] = {"arctic": [], "bare loop": []}
    for turn in range(rounds + 1):
        taken = []
        for _ in range(steps):
            started = time.perf_counter()
            batch = next(batches)
            trainer.step(batch)
            taken.append((time.perf_counter() - started, batch))
        again = []
        for _, batch in taken:
            started = time.perf_counter()
            bare.step(batch)
            again.append(time.perf_counter() - started)
        if turn:  # the first turn warms up
            seconds["arctic"] += [elapsed for elapsed, _ in taken]
            seconds["bare loop"] += again
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    shape = tuple(taken[0][1][0]["input_ids"].shape)
    print(f"{rounds} turns of {steps} steps, micro-batches of {shape}, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:10} {median:.4f} s a step (least {min(seconds[name]):.4f}, most {max(seconds[name]):.4f})")
    print(f"ratio      {medians['arctic'] / medians['bare loop']:.3f}")


def batches_of(trainer: Any):
    epoch = 0
    while True:
        yield from trainer.train_dataloader.epoch(epoch)
        epoch += 1


class BareLoop:
    """What a careful person writes by hand: forward, cross entropy, backward, clip, AdamW."""

    def __init__(self, model: Any, learning_rate: float) -> None:
        import torch

        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate or 1e-4, weight_decay=0.1, fused=True)

    def step(self, batch: list[Any]) -> float:
        import torch
        import torch.nn.functional as F

        count = sum(int((micro_batch["labels"][:, 1:] != -100).sum()) for micro_batch in batch)
        total = 0.0
        for micro_batch in batch:
            inputs = {name: value for name, value in micro_batch.items() if name != "labels"}
            logits = self.model(**inputs, use_cache=False).logits[:, :-1]
            loss = (
                F.cross_entropy(
                    logits.flatten(0, 1), micro_batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
                )
                / count
            )
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


if __name__ == "__main__":
    main()
