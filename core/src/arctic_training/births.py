"""Starts the workers of a data loader, and starts them again where one is not born.

A fork copies the locks of the interpreter as they are. Threads of collectives (gloo's, when they let go of tensors)
take one of them unasked, and a child of CPython 3.11 takes it before it makes it anew: one that was forked in that
moment waits for ever, with it its rank, and with that all others. Seen on two ranks with gloo, in an evaluation.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from arctic_training.errors import ArcticError
from arctic_training.wording import counted

SECONDS = 20.0
"""How long a worker may take from its fork to its first line of Python; milliseconds, as a rule."""
ATTEMPTS = 5


def started(make: Callable[[Callable[[int], None]], Any], num_workers: int) -> Iterator[Any]:
    """The iterator of a data loader whose workers have all been born.

    Args:
        make: makes the loader; its workers have to call what they are given first (``worker_init_fn``).
        num_workers: how many there are.

    Raises:
        ArcticError: one of them was not born in any of ``ATTEMPTS`` tries.
    """
    for _ in range(ATTEMPTS if num_workers else 0):
        here, there = os.pipe()
        try:
            iterator = iter(make(functools.partial(_tell, there)))
            if _are_told(here, num_workers):
                return iterator
            _discard(iterator)
        finally:
            os.close(here)
            os.close(there)
    if num_workers:
        raise ArcticError(
            f"no process that reads data ahead came up within {SECONDS:.0f} s in {counted(ATTEMPTS, 'try', 'tries')}",
            remedy="set data.dl_num_workers: 0, which needs none",
        )
    return iter(make(lambda worker: None))


def _tell(pipe: int, worker: int) -> None:
    os.write(pipe, b".")


def _are_told(pipe: int, number: int) -> bool:
    end = time.monotonic() + SECONDS
    while number > 0 and (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            number -= len(os.read(pipe, number))
    return number <= 0


def _discard(iterator: Any) -> None:
    """End all of its workers; one that was not born heeds no signal but SIGKILL."""
    workers = list(iterator._workers)
    iterator._shutdown_workers()  # from here on torch does not take their end for a fault
    for worker in workers:
        with contextlib.suppress(ValueError):  # closed already
            if worker.is_alive():
                worker.kill()
            worker.join()
