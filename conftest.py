"""Imports the command line's package before pytest comes to ``arctic_cli/tests``, and keeps processes that test beside
each other from waiting for each other's threads.

pytest names a test module by its folders, and would take the folder ``arctic_cli``, which holds the distribution, for
the package of that name.
"""

from __future__ import annotations

import contextlib
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: its threads spin while they wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

with contextlib.suppress(ModuleNotFoundError):  # tests of core alone run without it
    import arctic_cli  # noqa: F401
