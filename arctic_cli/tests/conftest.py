"""What the tests of the command line share: callers of ``arctic``, a recipe for core alone, distributions made here."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from arctic_cli.main import main


@attrs.frozen
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def arctic(arctic_home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Call ``arctic`` in this process, as its console script does."""

    def call(*words: str, program: Callable[..., int] = main) -> Outcome:
        capsys.readouterr()
        code = program(list(words))
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture
def arctic_process(arctic_home: Path) -> Callable[..., Outcome]:
    """Call ``arctic`` in a process of its own."""

    def call(*words: str, timeout: float = 120, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "arctic_cli", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return call


TINY_RECIPE = """\
type: tiny
plugins:
  use: [arctic_training.testing.tiny]
model:
  dtype: fp32
data:
  sources: [{type: tiny}]
  dl_num_workers: 0
  num_proc: 1
optimizer: {type: adamw, learning_rate: 1e-2}
scheduler: {type: constant}
engine: {type: torch}
micro_batch_size: 4
train_iters: 3
run_dir: run
"""


@pytest.fixture
def recipe(arctic_home: Path) -> Path:
    """A recipe that needs no plugin but core, and three steps."""
    path = arctic_home / "recipe.yaml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a distribution on the path: its entry points by group, and its modules."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    inherited = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *([inherited] if inherited else [])]))

    def install(
        distribution: str, entry_points: dict[str, dict[str, str]], modules: dict[str, str], version: str = "1.2.3"
    ) -> None:
        folder = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        groups = [
            "\n".join([f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())])
            for group, entries in entry_points.items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(groups) + "\n")
        for name, text in modules.items():
            (site / f"{name}.py").write_text(textwrap.dedent(text))
            monkeypatch.delitem(sys.modules, name, raising=False)

    return install
