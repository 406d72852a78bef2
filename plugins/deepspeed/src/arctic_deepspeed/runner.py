"""DeepSpeed's runner as a command, with its exit code put right: it calls a launcher that a signal ended a success."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from arctic_training.orphans import watch_parent

USAGE = 2
_started: list[subprocess.Popen] = []


class _Remembered(subprocess.Popen):
    """A process that is known when DeepSpeed's runner has returned."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _started.append(self)


def main() -> int:
    """Run DeepSpeed's runner with this process's arguments.

    Returns:
        0, 2 for hosts or slots that there are not, or 128 + n when signal n ended the launcher; the runner exits by
        itself for any other failure.
    """
    watch_parent()
    from deepspeed.launcher import runner

    subprocess.Popen = _Remembered  # type: ignore[misc]
    try:
        runner.main()
    except ValueError as error:  # hosts and slots that do not exist
        print(f"launcher: {error}", file=sys.stderr)
        return USAGE
    status = _started[-1].poll() if _started else 0
    return 128 - status if status is not None and status < 0 else 0


if __name__ == "__main__":
    sys.exit(main())
