"""One rank of the tests: runs each recipe of a file in turn and writes down its first record of training.

Arguments: a JSON file {name: recipe}, and the JSON file for {name: record}.
"""

import json
import sys
from pathlib import Path

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
    records = {}
    for name, recipe in json.loads(Path(recipes).read_text()).items():
        run = Run(resolve(load_recipe(recipe), create_plugin_manager()))
        run.execute()
        lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
        records[name] = [line for line in lines if line["kind"] == "train"]
    if world.is_first:
        Path(results).write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:3])
