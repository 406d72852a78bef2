"""Somebody else's distribution comes and goes with pip: ``examples/third-party-plugin`` in its own environment."""

import json
import math
import os
import shutil
import site
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = 12

pytestmark = pytest.mark.slow


class Installation:
    """A virtual environment that sees every package of the running one, so that only what is tried out is installed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        venv.create(directory, with_pip=False, symlinks=True)
        self.python = directory / "bin/python"
        (packages,) = directory.glob("lib/python*/site-packages")
        parents = "".join(f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages())
        (packages / "running-installation.pth").write_text(parents)
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("ARCTIC_", "PYTHON"))}
        own = {"ARCTIC_HOME": str(directory / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.environment = kept | own

    def __call__(self, *arguments: str, cwd: Path | None = None, exit_code: int = 0, **environment: str) -> Any:
        """The process that ran Python with these arguments to its end."""
        done = subprocess.run(
            [str(self.python), *arguments],
            cwd=cwd or self.directory,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done

    def pip(self, *arguments: str) -> None:
        self("-m", "pip", "--disable-pip-version-check", *arguments)

    def plugins(self) -> list[dict]:
        return json.loads(self("-m", "arctic_cli", "plugins", "list", "--json").stdout)

    def hooks(self, name: str) -> list[tuple[str, str]]:
        """Plugin and kind of each implementation, in the order that ``arctic plugins hooks`` states."""
        (found,) = json.loads(self("-m", "arctic_cli", "plugins", "hooks", name, "--json").stdout)
        return [(each["plugin"], each["kind"]) for each in found["implementations"]]

    def distributions(self) -> list[str]:
        return self("-m", "pip", "list", "--format", "freeze").stdout.splitlines()


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A copy of the examples, so that neither building nor training leaves anything in the repository."""
    copy = tmp_path_factory.mktemp("somewhere") / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("runs", "output", "build", "__pycache__"))
    return copy


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    return Installation(tmp_path_factory.mktemp("installation"))


@pytest.fixture(scope="module")
def without_plugin(installation):
    """What the environment lists before the plugin comes."""
    return installation.plugins(), installation.distributions()


@pytest.fixture(scope="module")
def installed(installation, examples, without_plugin):
    source = str(examples / "third-party-plugin")
    installation.pip("install", "--no-build-isolation", "--no-deps", "--no-index", source)
    return installation


@pytest.fixture(scope="module")
def trained(installed, examples):
    """The run directory of the plugin's recipe and what the run said, hook calls traced."""
    done = installed(
        "-m",
        "arctic_cli",
        "run",
        "examples/third-party-plugin/recipe.yaml",
        f"train_iters={STEPS}",
        "run_dir=this-run",
        cwd=examples.parent,
        ARCTIC_TRACE_PLUGINS="1",
    )
    return examples.parent / "this-run", done.stderr


def test_installing_adds_one_line_to_the_list_and_changes_no_other(installed, without_plugin):
    before, _ = without_plugin
    after = installed.plugins()
    assert [plugin for plugin in after if plugin["name"] != "focal"] == before
    (focal,) = [plugin for plugin in after if plugin["name"] == "focal"]
    assert (focal["distribution"], focal["status"]) == ("arctic-plugin-focal", "active")
    assert {(each["kind"], each["name"]) for each in focal["components"]} == {
        ("trainer", "focal"),
        ("loss", "focal"),
        ("scheduler", "cosine_with_floor"),
    }


def test_a_recipe_of_its_type_trains(trained):
    run_dir, _ = trained
    steps = [record for record in records(run_dir) if record["kind"] == "train"]
    assert len(steps) == STEPS
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_its_schedule_sets_the_learning_rates(trained):
    run_dir, _ = trained
    rates = [record["learning_rate"] for record in records(run_dir) if record["kind"] == "train"]
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * step / (STEPS - 2))) / 2 for step in range(STEPS - 1)]
    assert rates == pytest.approx([1e-3 * share for share in (0.5, *cosine)])


def test_its_wrapper_and_observer_run_in_the_order_that_is_recorded(installed, trained):
    run_dir, said = trained
    assert installed.hooks("compute_loss") == [("focal", "wrapper"), ("core", "trylast")]
    assert installed.hooks("after_save") == [("focal", "")]
    traced = [line.removeprefix("hook ") for line in said.splitlines() if line.startswith("hook arctic_")]
    losses = [line for line in traced if line.startswith("arctic_compute_loss")]
    saves = [line for line in traced if line.startswith("arctic_after_save")]
    assert losses == ["arctic_compute_loss(batch, trainer): focal (wrapper), core"] * STEPS
    assert saves == ["arctic_after_save(path, step, trainer): status file, focal"]
    (schedule,) = [line for line in traced if line.startswith("arctic_build_scheduler")]
    assert traced.index(schedule) < traced.index(losses[0]) < traced.index(saves[0])
    events = [record["event"] for record in records(run_dir) if record["kind"] == "event"]
    assert events[:2] == ["checkpoint", "focal_checkpoint"]
    plugins = [line.split()[0] for line in json.loads((run_dir / "run.json").read_text())["plugins"]]
    assert plugins == [plugin["name"] for plugin in installed.plugins()]


def test_its_own_tests_pass_as_its_author_runs_them(installed, examples):
    tests = shutil.copytree(examples / "third-party-plugin/tests", installed.directory / "tests")
    installed("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests))


def test_uninstalling_leaves_everything_as_it_was(installed, without_plugin, examples, trained):
    installed.pip("uninstall", "--yes", "arctic-plugin-focal")
    plugins, distributions = without_plugin
    assert installed.plugins() == plugins
    assert installed.distributions() == distributions
    words = ("-m", "arctic_cli", "run", "examples/third-party-plugin/recipe.yaml", "plugins.require=[]")
    refused = installed(*words, cwd=examples.parent, exit_code=2)
    assert "there is no trainer 'focal'" in refused.stderr


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
