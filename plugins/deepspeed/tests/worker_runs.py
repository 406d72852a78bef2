"""One rank of the tests: runs each recipe of a file in turn and writes down what came of it.

Arguments: a JSON file {name: recipe}, and a directory for {name}.json (losses, gradient norms, error) and {name}.pt
(the whole model after the last step).
"""

import json
import os
import sys
from pathlib import Path

from arctic_training.errors import ArcticError
from arctic_training.hookspecs import hookimpl
from arctic_training.orphans import watch_parent


def main(recipes, results):
    watch_parent()
    import torch

    from arctic_training.distributed import World, join
    from arctic_training.plugins import create_plugin_manager
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve
    from arctic_training.run import Run
    from arctic_training.testing import tiny

    world = World.from_environment()
    if world.size > 1:  # once for all runs: the ranks would miss each other at the second meeting on one port
        join(world, torch.device("cpu"), timeout=600)
    for name, recipe in json.loads(Path(recipes).read_text()).items():
        poisoned_step = recipe.pop("poisoned_step", 0)
        manager = create_plugin_manager()
        manager.register(tiny, "tiny")
        watcher = Watcher(poisoned_step)
        manager.register(watcher, "watcher")
        run = Run(resolve(load_recipe(recipe), manager))
        error = None
        try:
            run.execute()
        except ArcticError as raised:
            error = str(raised)
        if run.world.is_first:
            watcher.write(Path(results) / name, run, error)


class Watcher:
    """Poisons the loss of the last rank at one step, and takes the whole model when training ends."""

    def __init__(self, poisoned_step):
        self.poisoned_step = poisoned_step
        self.weights = {}

    @hookimpl(wrapper=True)
    def arctic_compute_loss(self, batch, trainer):
        loss = yield
        is_poisoned = trainer.global_step + 1 == self.poisoned_step and trainer.global_rank == trainer.world_size - 1
        return loss._replace(sum=loss.sum * float("nan")) if is_poisoned else loss

    @hookimpl
    def arctic_train_end(self, trainer, error):
        self.weights = {name: tensor.clone() for name, tensor in trainer.engine.full_parameters()}

    def write(self, path, run, error):
        import torch

        lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
        records = [line for line in lines if line["kind"] == "train"]
        report = {figure: [record[figure] for record in records] for figure in ("loss", "grad_norm", "learning_rate")}
        report |= {"error": error, "first_step": run.first_step, "ranks": run.world.size}
        path.with_suffix(".json").write_text(json.dumps(report))
        torch.save(self.weights, path.with_suffix(".pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # After so many engines in one process, threads of the libraries sometimes abort the interpreter as it shuts down.
    os._exit(0)
