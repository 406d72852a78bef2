"""One rank of the tests that compare engines: runs each recipe of a JSON file {name: recipe} in turn.

Writes {name}.json (the figures of each step) and {name}.pt (the whole model after the last) into a directory.
"""

import json
import os
import sys
from pathlib import Path

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

    world = World.from_environment()
    if world.size > 1:  # once for all runs: the ranks would miss each other at the second meeting on one port
        join(world, torch.device("cpu"), timeout=600)
    for name, recipe in json.loads(Path(recipes).read_text()).items():
        manager = create_plugin_manager()
        watcher = Watcher()
        manager.register(watcher, "watcher")
        run = Run(resolve(load_recipe(recipe), manager))
        run.execute()
        if world.is_first:
            watcher.write(Path(results) / name, run)


class Watcher:
    """Looks at the model when it is built, and takes it when training ends."""

    def __init__(self):
        self.weights = {}
        self.is_partitioned = False

    @hookimpl(wrapper=True, tryfirst=True)
    def arctic_build_model(self, model_config, config, run):
        model = yield
        self.is_partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
        return model

    @hookimpl
    def arctic_train_end(self, trainer, error):
        self.weights = {name: tensor.clone() for name, tensor in trainer.engine.full_parameters()}

    def write(self, path, run):
        import torch

        lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
        records = [line for line in lines if line["kind"] == "train"]
        figures = ("loss", "grad_norm", "learning_rate", "trained_tokens")
        report = {figure: [record[figure] for record in records] for figure in figures}
        report |= {"ranks": run.world.size, "engine": run.engine_class.name, "is_partitioned": self.is_partitioned}
        path.with_suffix(".json").write_text(json.dumps(report))
        torch.save(self.weights, path.with_suffix(".pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # After fourteen engines in one process, threads of the libraries sometimes abort the interpreter while it shuts
    # down.
    os._exit(0)
