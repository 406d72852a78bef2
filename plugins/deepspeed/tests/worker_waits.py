"""A rank without any training: writes its number and its child's into a directory, then does what it is told.

Arguments: the directory, and one of ``end``, ``fail`` (rank 1 exits with code 6), ``die`` (rank 1 kills itself),
``wait``.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from arctic_training.orphans import watch_parent

watch_parent()
directory, order = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]
seconds = 0 if order == "end" else 60
child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
(directory / f"rank-{rank}.tmp").write_text(f"{os.getpid()} {child.pid} {os.environ['WORLD_SIZE']} {sys.argv[3:]}")
(directory / f"rank-{rank}.tmp").rename(directory / f"rank-{rank}")
if order != "end":
    while len(list(directory.glob("rank-?"))) < 2:
        time.sleep(0.05)
if rank == "1" and order == "fail":
    sys.exit(6)
if rank == "1" and order == "die":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(seconds)
