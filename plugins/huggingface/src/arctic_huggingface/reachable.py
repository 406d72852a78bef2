"""Whether the hub can be reached, asked once before the libraries ask, which try again for most of a minute."""

from __future__ import annotations

import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 5.0
"""How long a name may take to be looked up and a connection to be made."""

REMEMBERED_SECONDS = 60
"""How long an answer holds, since a run asks for model, tokenizer and data one after the other."""


@contextmanager
def offline_if_unreachable(on_hub: bool = True) -> Iterator[None]:
    """Let the libraries look into their cache alone, for as long as this lasts, where the hub cannot be reached.

    Args:
        on_hub: whether what is looked for is on the hub at all; False does nothing.
    """
    from huggingface_hub import constants

    if not on_hub or constants.is_offline_mode() or _answers(constants.ENDPOINT, _period()):
        yield
        return
    config = getattr(sys.modules.get("datasets"), "config", None)  # it keeps a copy of its own
    switches = [(constants, "HF_HUB_OFFLINE"), *((config, name) for name in _COPIES if hasattr(config, name))]
    before = [getattr(holder, name) for holder, name in switches]
    for holder, name in switches:
        setattr(holder, name, True)
    try:
        yield
    finally:
        for (holder, name), value in zip(switches, before, strict=True):
            setattr(holder, name, value)


_COPIES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def _period() -> int:
    return int(time.monotonic() // REMEMBERED_SECONDS)


@lru_cache(maxsize=4)
def _answers(endpoint: str, period: int) -> bool:
    """Whether a connection can be made; taken for granted behind a proxy, which alone knows."""
    if getproxies().keys() & {"http", "https", "all"}:
        return True
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((address.hostname or "", port), timeout=SECONDS):
            answered.set()

    attempt = threading.Thread(target=connect, daemon=True)  # a name server that is silent knows no time limit
    attempt.start()
    attempt.join(SECONDS)
    return answered.is_set()
