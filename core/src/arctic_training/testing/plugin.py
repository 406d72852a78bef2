"""The pytest plugin: fixtures for tests of Arctic plugins. Nothing heavy is imported before a fixture is used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from arctic_training.plugins import PluginManager
    from arctic_training.run import Run
    from arctic_training.testing.recorder import HookRecorder

pytest.register_assert_rewrite("arctic_training.testing.contracts")


@pytest.fixture
def arctic_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and caches of this test's own."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ARCTIC_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ARCTIC_HOME", str(tmp_path / "arctic-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plugin_manager() -> PluginManager:
    """A manager with the installed plugins and the tiny components."""
    from arctic_training.plugins import create_plugin_manager
    from arctic_training.testing import tiny

    manager = create_plugin_manager()
    manager.register(tiny, "tiny")
    return manager


@pytest.fixture
def tiny_recipe() -> dict[str, Any]:
    """A recipe of tiny components that trains in a second. Change it as you need."""
    return {
        "type": "tiny",
        "model": {"dtype": "fp32"},
        "data": {"sources": [{"type": "tiny"}], "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "engine": {"type": "torch"},
        "micro_batch_size": 4,
        "train_log_iter_interval": 0,
    }


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A folder with a Llama of one layer, random weights and a tokenizer, for plugins that use transformers."""
    from arctic_training.testing.tiny_llama import make_tiny_llama

    return make_tiny_llama(tmp_path / "tiny-model")


@pytest.fixture
def tiny_chats(tmp_path: Path) -> Path:
    """A JSONL file of 48 chats."""
    path = tmp_path / "chats.jsonl"
    with open(path, "w") as file:
        for number in range(48):
            question = f"What is {number} plus {number % 7}?"
            answer = f"It is {number + number % 7}." if number % 3 else f"{number + number % 7}, of course."
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


@pytest.fixture
def run_recipe(arctic_home: Path, plugin_manager: PluginManager) -> Callable[..., Run]:
    """A function that runs a recipe (a mapping or a path) in this process and gives the finished run.

    ``run.metrics`` holds the lines of its ``metrics.jsonl``.
    """
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve
    from arctic_training.run import Run

    def run(recipe: Mapping[str, Any] | Path | str, *overrides: str) -> Run:
        config = resolve(load_recipe(recipe, overrides), plugin_manager)
        finished = Run(config)
        finished.execute()
        lines = (finished.run_dir / "metrics.jsonl").read_text().splitlines()
        finished.metrics = [json.loads(line) for line in lines]  # type: ignore[attr-defined]
        return finished

    return run


@pytest.fixture
def build_run(arctic_home: Path, plugin_manager: PluginManager) -> Callable[..., AbstractContextManager[Run]]:
    """A function for a ``with`` block: everything that comes before the first step of a recipe is built inside it.

    One at a time: leave the block before you build or run another.
    """
    from arctic_training.recipe import load_recipe
    from arctic_training.resolve import resolve
    from arctic_training.run import Run

    @contextmanager
    def build(recipe: Mapping[str, Any] | Path | str, *overrides: str) -> Iterator[Run]:
        run = Run(resolve(load_recipe(recipe, overrides), plugin_manager))
        try:
            run.set_up()
            yield run
        finally:
            run.tear_down()

    return build


@pytest.fixture
def hook_recorder(plugin_manager: PluginManager) -> Iterator[HookRecorder]:
    """Records the hooks that runs of this test call."""
    from arctic_training.testing.recorder import HookRecorder

    with HookRecorder().watching(plugin_manager) as recorder:
        yield recorder
