"""How long the commands take that people wait for, as the median of five starts with warm files.

Times are printed, since machines differ; what is asserted is that none of them imports what makes starts slow.
Run it as a script: ``python arctic_cli/tests/measure_startup.py [RECIPE]``; without a recipe it validates a tiny one.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAVY = ("torch", "transformers", "datasets", "deepspeed", "numpy")
BUDGETS = {"--help": 0.35, "plugins": 0.8, "validate": 0.8}
"""Seconds that each command may take."""
STARTS = 5
RECIPE = """\
type: tiny
plugins: {use: [arctic_training.testing.tiny]}
data: {sources: [{type: tiny}]}
"""

_PROBE = """
import json, sys
from arctic_cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def modules_of(*words: str) -> tuple[int, list[str]]:
    """The exit code of a command and the modules that it imported, from a process of its own."""
    done = subprocess.run([sys.executable, "-c", _PROBE, *words], capture_output=True, text=True, timeout=60)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    return code, modules


def heavy_modules_of(*words: str) -> list[str]:
    """Those of the modules that make starts slow."""
    return sorted(set(HEAVY) & set(modules_of(*words)[1]))


def median_seconds(*words: str) -> float:
    """The median time of a command from start to end."""
    seconds = []
    for _ in range(STARTS + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "arctic_cli", *words], capture_output=True, check=True, timeout=60)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first start warms the files


def main() -> int:
    """Print a line for each command.

    Returns:
        1 if one of them imports a heavy module, else 0.
    """
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.yaml") if len(sys.argv) < 2 else Path(sys.argv[1])
        if len(sys.argv) < 2:
            recipe.write_text(RECIPE)
        os.environ["ARCTIC_HOME"] = folder
        for command, budget in BUDGETS.items():
            words = [command, str(recipe)] if command == "validate" else [command]
            heavy = heavy_modules_of(*words)
            failed |= bool(heavy)
            print(
                f"arctic {command:10} {median_seconds(*words):.3f} s (budget {budget} s)  imports: {heavy or 'light'}"
            )
    return failed


if __name__ == "__main__":
    sys.exit(main())
