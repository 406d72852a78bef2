"""The world of a run: its ranks, its devices, and the few collectives that the core needs.

A single process has no process group unless its engine wants one; everything here works without.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from arctic_training.errors import ArcticError, UsageError

if TYPE_CHECKING:
    import torch


def wait_without_spinning() -> None:
    """Let threads of torch that wait for each other sleep soon, unless OMP_WAIT_POLICY or GOMP_SPINCOUNT say otherwise.

    By default they spin 300,000 times first. Where anything else wants a core, each barrier then lasts until the
    scheduler takes the spinning thread off it: steps were seen to take 50 times as long. 1,000 times cost a twentieth
    of the speed where nothing else runs. Works only before torch is first imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@attrs.frozen
class World:
    """Where this process stands among all ranks, as the launcher's environment says. Counts from 0."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; without them this process is the whole world.

        Raises:
            UsageError: one of them is set to something that is not a rank.
        """
        try:
            size = int(environment.get("WORLD_SIZE", 1))
            rank = int(environment.get("RANK", 0))
            local_rank = int(environment.get("LOCAL_RANK", rank if size > 1 else 0))
            local_size = int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", size)))
        except ValueError as error:
            raise UsageError(
                f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}",
                remedy="unset them, or start through a launcher",
            ) from error
        if not 0 <= rank < size:
            raise UsageError(
                f"RANK={rank} does not fit WORLD_SIZE={size}", remedy="unset both, or start through a launcher"
            )
        return cls(rank, size, local_rank, local_size)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def choose_device(world: World) -> torch.device:
    """This rank's accelerator when there is one, else the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.device(torch.accelerator.current_accelerator().type, world.local_rank)
    torch.accelerator.set_device_index(world.local_rank)
    return device


def join(world: World, device: torch.device, *, timeout: float, alone: bool = False) -> bool:
    """Join the process group, once.

    Args:
        world: where this process stands.
        device: this rank's device; NCCL on CUDA, gloo elsewhere.
        timeout: seconds that a collective may wait for the slowest rank.
        alone: make a group of one, for engines that cannot do without.

    Returns:
        Whether this call made the group, and ``leave`` should end it.
    """
    import torch.distributed as dist

    if dist.is_initialized() or (world.size == 1 and not alone):
        return False
    backend = "nccl" if device.type == "cuda" else "gloo"
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    if world.size == 1:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout), **options)
    except Exception as error:
        raise ArcticError(
            f"rank {world.rank} of {world.size} could not join the process group: {error}",
            remedy="check MASTER_ADDR and MASTER_PORT, and that all ranks were started",
        ) from error
    return True


def leave() -> None:
    """End the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of ``values`` over all ranks, through ``device``, in their place; unchanged in a single process."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    values = values.to(device)
    dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is true on at least one rank."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    vote = torch.tensor(float(flag), device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


def largest_over_ranks(values: Sequence[int], device: torch.device) -> list[int]:
    """The largest of each value over all ranks; unchanged in a single process."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return list(values)
    votes = torch.tensor(values, device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [int(vote) for vote in votes.tolist()]


def gather_objects(value: Any) -> list[Any]:
    """``value`` of every rank, in the order of ranks."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def rows_of_ranks(rows: torch.Tensor) -> list[torch.Tensor]:
    """The tensor of every rank, in the order of ranks, where each may have another number of rows (first dimension).

    Args:
        rows: on this rank's device, of the same type and shape of a row on every rank; no gradient goes through.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [rows]
    counts = [int(count) for count in gather_objects(len(rows))]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return [of_rank[:count] for of_rank, count in zip(gathered, counts, strict=True)]


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait until every rank is here."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
