"""What has to stand in a process before DeepSpeed is used: the environment of a rank, and no compilation at start."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

SHARED_MEMORY_OP = "deepspeed_shm_comm"
"""An op for inference on CPUs that DeepSpeed compiles at the first collective: a minute of g++, and 66 MiB of shared
memory a rank that nobody removes. Training has no use for it."""
SET_BY_US = "deepspeed_environment"
"""Attribute of a run with the environment's names that were set for it."""


def prepare_environment(world: Any, device_type: str, environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Set what DeepSpeed reads and a single process lacks; without it DeepSpeed looks for MPI.

    Args:
        world: the rank's ``World``.
        device_type: ``cpu``, ``cuda``, ...: DeepSpeed must settle on the device that the core chose.
        environment: what to change.

    Returns:
        The names that were not set before.
    """
    wanted = {
        "RANK": str(world.rank),
        "LOCAL_RANK": str(world.local_rank),
        "WORLD_SIZE": str(world.size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    if device_type in ("cpu", "cuda", "xpu", "npu", "mps"):
        wanted["DS_ACCELERATOR"] = device_type
    missing = {name: value for name, value in wanted.items() if name not in environment}
    environment.update(missing)
    return list(missing)


def restore(run: Any) -> None:
    """Leave the process as it was before a run, so that another can follow: no environment, no groups of ranks."""
    for name in vars(run).pop(SET_BY_US, ()):
        os.environ.pop(name, None)
    groups = sys.modules.get("deepspeed.utils.groups")
    if groups is not None:
        release = getattr(groups, "_release_process_group_references", None)
        release() if release else vars(groups).update(_WORLD_GROUP=None)


def share_cores(world: Any, device_type: str, environment: Mapping[str, str] = os.environ) -> None:
    """Divide the cores of this machine among its ranks, unless OMP_NUM_THREADS says otherwise.

    DeepSpeed's launcher leaves every rank with as many threads as there are cores.
    """
    if device_type != "cpu" or world.local_size == 1 or "OMP_NUM_THREADS" in environment:
        return
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))


def import_without_compiling() -> Any:
    """Import DeepSpeed so that starting it needs no compiler.

    Returns:
        The ``deepspeed`` package.
    """
    import deepspeed

    # A private name, and one that moves: a DeepSpeed without it has no such op. Where it is not there yet, asking for
    # it would try the compiler on a dozen ops, so it is set without asking.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})[SHARED_MEMORY_OP] = False
    # DeepSpeed calls collectives by names that torch 2.13 deprecates, several times a step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    return deepspeed


def let_groups_wait(seconds: float) -> None:
    """Give the groups of ranks that DeepSpeed made the recipe's timeout: it makes them with torch's own, which is 10
    minutes with NCCL."""
    from torch.distributed import distributed_c10d as groups

    set_timeout = getattr(groups, "_set_pg_timeout", None)  # private: where it is gone, torch's own timeout stays
    if set_timeout is None:
        return
    for group in list(groups._world.pg_map):
        set_timeout(datetime.timedelta(seconds=seconds), group)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DeepSpeed says what the run does not say itself, as it does of a step that was not applied."""
    return "OVERFLOW! Skipping step" not in record.getMessage()


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Keep what DeepSpeed prints about memory while it sets up to itself, unless it fails."""
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter):
            yield
    except BaseException:
        sys.stderr.write(chatter.getvalue())
        raise
