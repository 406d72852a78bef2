"""Little distributions on disk, as pip would leave them, for tests of how plugins are found and how they fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def write_distribution(
    folder: Path,
    distribution: str,
    *,
    version: str = "1.0",
    entry_points: Mapping[str, str],
    modules: Mapping[str, str],
    requires: Sequence[str] = (),
    group: str = "arctic",
) -> Path:
    """Write the metadata and modules of a distribution into a folder that is, or will be, on the path.

    Args:
        folder: made if it is absent; several distributions may share it.
        distribution: its name.
        version: its version.
        entry_points: target (``module`` or ``module:attribute``) of each entry point by name.
        modules: source of each module by name.
        requires: what it declares to depend on.
        group: the group of its entry points.

    Returns:
        The folder.
    """
    metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {distribution}",
        f"Version: {version}",
        f"Summary: {distribution}, a test.",
    ]
    lines += [f"Requires-Dist: {requirement}" for requirement in requires]
    (metadata / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    points = "".join(f"{name} = {target}\n" for name, target in entry_points.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{points}", encoding="utf-8")
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return folder
