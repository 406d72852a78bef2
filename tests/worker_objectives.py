"""One rank of the tests of objectives: runs each recipe of a JSON file {name: recipe} in turn.

Writes {name}.json (the records of training) and {name}.pt (the whole model after the last step) into a directory. The
optimizer ``plain`` moves weights by rate times gradient, so that weights differ as much as gradients do.
"""

import json
import os
import sys
from pathlib import Path

from arctic_training.hookspecs import hookimpl
from arctic_training.optimizer import OptimizerConfig, OptimizerFactory
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
        keeper = Keeper()
        manager.register(keeper, "keeper")
        manager.register_classes([PlainFactory], "plain")
        run = Run(resolve(load_recipe(recipe), manager))
        run.execute()
        if world.is_first:
            lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
            records = [line for line in lines if line["kind"] == "train"]
            Path(results, f"{name}.json").write_text(json.dumps(records))
            torch.save(keeper.weights, Path(results, f"{name}.pt"))


class PlainFactory(OptimizerFactory):
    name = "plain"
    config: OptimizerConfig

    def create_optimizer(self, model):
        import torch

        return torch.optim.SGD(self.parameter_groups(model), lr=self.config.learning_rate)


class Keeper:
    """Takes the model when training ends."""

    @hookimpl
    def arctic_train_end(self, trainer, error):
        self.weights = {name: tensor.clone() for name, tensor in trainer.engine.full_parameters()}


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of the libraries sometimes abort an interpreter that had many engines while it shuts down
