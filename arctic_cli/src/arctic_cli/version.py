"""The versions that ``arctic --version`` prints: ours, the plugins', and of what they stand on. Nothing is imported."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from arctic_training.discovery import COMMANDS_GROUP, GROUP, discover

OURS = ("arctic-core", "arctic-cli")
FOUNDATIONS = ("torch", "transformers", "datasets", "deepspeed")


def versions() -> list[tuple[str, str]]:
    """``(distribution, version)`` of core, command line and plugins, then of installed libraries, then Python."""
    candidates = [*discover(GROUP), *discover(COMMANDS_GROUP)]
    plugins = {(each.info.distribution, each.info.version) for each in candidates if each.info.distribution}
    known = [(name, version(name)) for name in OURS if _is_installed(name)]
    others = sorted(plugins - set(known))
    foundations = [(name, version(name)) for name in FOUNDATIONS if _is_installed(name)]
    return [*known, *others, *foundations, ("python", platform.python_version())]


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
