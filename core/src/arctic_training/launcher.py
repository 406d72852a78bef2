"""The launcher stage: what starts the ranks of a run when there is more than one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from arctic_training.component import Component
from arctic_training.config import ComponentConfig


class LauncherConfig(ComponentConfig):
    kind: ClassVar[str] = "launcher"


class Launcher(Component):
    """Starts one worker process a rank, on this machine or on several.

    A launcher is made in the parent, before there is a run: it takes no config and no run.
    """

    kind = "launcher"
    config: LauncherConfig

    def __init__(self) -> None:
        """A launcher has nothing to be configured with: its arguments come from the command line."""

    @abstractmethod
    def launch(self, worker: str, worker_arguments: Sequence[str], launcher_arguments: Sequence[str]) -> int:
        """Start the ranks and wait for them.

        Each rank is ``python worker *worker_arguments`` with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
        in its environment. However this process ends, no rank survives it.

        Args:
            worker: path of the worker's Python file.
            worker_arguments: its arguments.
            launcher_arguments: the user's arguments for the launcher, handed on untouched.

        Returns:
            The exit code: 0, or that of the rank that failed first.
        """
