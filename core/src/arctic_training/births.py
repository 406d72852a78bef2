"""Starts processes that read and encode ahead, and starts them again where one is not born.

A fork copies the locks of the interpreter as they are. Threads of collectives (gloo's, when they let go of tensors)
take one of them unasked, and a child of CPython 3.11 takes it before it makes it anew: one that was forked in that
moment waits for ever, with it its rank, and with that all others. Seen on two ranks with gloo, in an evaluation.
"""

from __future__ import annotations

import functools
import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

from arctic_training.errors import ArcticError
from arctic_training.wording import counted

Workers = TypeVar("Workers")

SECONDS = 20.0
"""How long a worker may take from its fork to its first line of Python; milliseconds, as a rule."""
ATTEMPTS = 5


def started(start: Callable[[Callable[[], None]], Workers], number: int, end: Callable[[Workers], None]) -> Workers:
    """Workers that have all been born.

    Args:
        start: forks them; each has to call what is given here as soon as it runs.
        number: how many there are.
        end: ends those of a try in which one was not born. Such a one heeds no signal but SIGKILL.

    Raises:
        ArcticError: one of them was not born in any of ``ATTEMPTS`` tries.
    """
    for _ in range(ATTEMPTS):
        here, there = os.pipe()
        try:
            workers = start(functools.partial(_tell, there))
            if _are_told(here, number):
                return workers
            end(workers)
        finally:
            os.close(here)
            os.close(there)
    raise ArcticError(
        f"no process that reads data ahead came up within {SECONDS:.0f} s in {counted(ATTEMPTS, 'try', 'tries')}",
        remedy="set data.dl_num_workers: 0 (data.num_proc: 1 where rows are prepared), which needs none",
    )


def _tell(pipe: int) -> None:
    os.write(pipe, b".")


def _are_told(pipe: int, number: int) -> bool:
    end = time.monotonic() + SECONDS
    while number > 0 and (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            number -= len(os.read(pipe, number))
    return number <= 0
