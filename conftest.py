"""Imports the command line's package before pytest comes to ``arctic_cli/tests``.

pytest names a test module by its folders, and would take the folder ``arctic_cli``, which holds the distribution, for
the package of that name.
"""

from __future__ import annotations

import contextlib

with contextlib.suppress(ModuleNotFoundError):  # tests of core alone run without it
    import arctic_cli  # noqa: F401
