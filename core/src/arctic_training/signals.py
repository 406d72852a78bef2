"""The signals that a run takes, and how the processes that work for a rank leave them to it."""

from __future__ import annotations

import signal

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that end training after the step, with a checkpoint."""
SAVING = getattr(signal, "SIGUSR1", None)
"""The signal that saves and goes on."""


def leave_signals_alone() -> None:
    """For a process that works for a rank: what is asked of a run is the rank's to hear.

    A terminal's interrupt reaches every process in front of it, and handlers are inherited.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if SAVING is not None:
        signal.signal(SAVING, signal.SIG_IGN)
