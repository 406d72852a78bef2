"""Plugins that fail, each installed as a distribution of its own: other commands live and say it, ``arctic run`` stops.

Each is tried in this process, and all of them together in processes of their own, as a user would meet them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from arctic_cli.main import main
from arctic_training.testing.distributions import write_distribution

RECIPE = """\
type: tiny
plugins:
  use: [arctic_training.testing.tiny]
  require: {require}
model: {{dtype: fp32}}
data:
  sources: [{{type: tiny}}]
  num_proc: 1
  dl_num_workers: 0
optimizer: {{type: adamw}}
scheduler: {{type: constant}}
engine: {{type: torch}}
train_iters: 1
train_log_iter_interval: 0
run_dir: {run_dir}
"""

HOOKIMPL = "from arctic_training import hookimpl\n"


@attrs.frozen
class Failing:
    """A plugin that fails: its source, what ``arctic run`` says about it, and the remedy it names.

    ``at_start`` is False for what only shows once its hook is called.
    """

    source: str
    told: str
    remedy: str
    target: str = "{module}"
    requires: tuple[str, ...] = ()
    recipe_requires: str = ""
    rival: bool = False
    at_start: bool = True


FAILING = {
    "raises": Failing("raise RuntimeError('no licence')", "RuntimeError: no licence", "-p no:raises"),
    "exits": Failing("import sys\nsys.exit(7)", "SystemExit(7)", "-p no:exits"),
    "garbled": Failing("def broken(:\n", "SyntaxError", "-p no:garbled"),
    "needy": Failing(
        "import frobnicate",
        "it needs the module 'frobnicate', which is not installed",
        'pip install "frobnicate>=2"',
        requires=("frobnicate>=2",),
    ),
    "misspelt": Failing(
        HOOKIMPL + "@hookimpl\ndef arctic_build_modle(config): ...\n",
        "arctic_build_modle is no hook; did you mean 'arctic_build_model'?",
        "`arctic plugins hooks` lists them",
    ),
    "argument": Failing(
        HOOKIMPL + "@hookimpl\ndef arctic_build_loss(configuration): ...\n",
        "takes 'configuration', which the hook does not pass; did you mean 'config'?",
        "config, run",
    ),
    "default": Failing(
        HOOKIMPL + "@hookimpl\ndef arctic_build_loss(config, run=None): ...\n",
        "gives 'run' a default",
        "without defaults",
    ),
    "keyword": Failing(
        HOOKIMPL + "@hookimpl\ndef arctic_build_loss(config, *, run): ...\n", "'run' by keyword only", "config, run"
    ),
    "classy": Failing(
        HOOKIMPL + "class Plugin:\n    @hookimpl\n    def arctic_build_loss(self, config): ...\n",
        "gives the class Plugin",
        "plugin = Plugin()",
        target="{module}:Plugin",
    ),
    "duplicate": Failing(
        HOOKIMPL
        + "@hookimpl\ndef arctic_register_components(components):\n"
        + "    components.loss('cross_entropy', 'duplicate_plugin:Loss')\n",
        "the loss 'cross_entropy' is offered by plugin 'core' (arctic-core ",
        "-p no:duplicate",
    ),
    "repeated": Failing(
        HOOKIMPL
        + "@hookimpl\ndef arctic_register_components(components):\n"
        + "    components.loss('mine', 'repeated_plugin:Loss')\n    components.loss('mine', 'repeated_plugin:Other')\n",
        "offers the loss 'mine' twice",
        "give one of them another name",
    ),
    "twin": Failing("", "arctic-bad-other 2.0 and arctic-bad-twin 0.5", "-p no:arctic-bad-", rival=True),
    "old": Failing(
        HOOKIMPL + "@hookimpl\ndef arctic_epoch_start(epoch): ...\n",
        "requires the plugin 'old>=2', which is not met",
        'pip install "arctic-bad-old>=2"',
        recipe_requires="old>=2",
    ),
    "hole": Failing(
        HOOKIMPL + "@hookimpl(wrapper=True)\ndef arctic_build_loss(config):\n    loss = yield\n",
        "its wrapper around arctic_build_loss returned nothing",
        "`return result`",
        at_start=False,
    ),
    "wrong": Failing(
        HOOKIMPL + "@hookimpl\ndef arctic_build_optimizer(config):\n    return 'adam'\n",
        "it answered arctic_build_optimizer with str 'adam', not Optimizer",
        "-p no:wrong",
        at_start=False,
    ),
}

# What shows only with a recipe that demands it, or once a hook is called, is no fault in the list of plugins.
LISTED = [name for name, failing in FAILING.items() if failing.at_start and not failing.recipe_requires]


def install(name: str, site: Path) -> None:
    failing = FAILING[name]
    module = f"{name}_plugin"
    write_distribution(
        site,
        f"arctic-bad-{name}",
        version="0.5",
        entry_points={name: failing.target.format(module=module)},
        modules={module: failing.source},
        requires=failing.requires,
    )
    if failing.rival:
        write_distribution(
            site, "arctic-bad-other", version="2.0", entry_points={name: "other_plugin"}, modules={"other_plugin": ""}
        )


def write_recipe(folder: Path, *names: str) -> str:
    required = [FAILING[name].recipe_requires for name in names if FAILING[name].recipe_requires]
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(require=json.dumps(required), run_dir=folder / "run"))
    return str(path)


@pytest.fixture
def site(arctic_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of this process; what is imported from it is forgotten afterwards."""
    folder = arctic_home / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name, module in list(sys.modules.items()):
        if str(folder) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


def lines_about(name: str, text: str) -> list[str]:
    return [line for line in text.splitlines() if FAILING[name].told in line]


@pytest.mark.parametrize("name", FAILING)
def test_help_and_plugins_and_validate_live_beside_a_plugin_that_fails(
    name: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(name, site)
    recipe = write_recipe(site.parent, name)
    assert call(capsys, "--help")[0] == 0
    code, listing, faults = call(capsys, "plugins")
    assert code == 0
    assert f"arctic-bad-{name}" in listing
    code, validated, warnings = call(capsys, "validate", recipe)
    assert code == 0
    assert "valid" in validated
    assert bool(lines_about(name, faults)) == (name in LISTED)
    if FAILING[name].at_start:
        assert lines_about(name, warnings)
        assert f"arctic-bad-{name}" in lines_about(name, warnings)[0]


@pytest.mark.parametrize("name", FAILING)
def test_run_stops_with_code_3_and_names_plugin_distribution_version_and_remedy(
    name: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(name, site)
    code, _, errors = call(capsys, "run", write_recipe(site.parent, name))
    assert code == 3
    assert lines_about(name, errors), errors
    assert f"'{name}'" in errors
    assert f"arctic-bad-{name} 0.5" in errors
    assert FAILING[name].remedy in errors
    if FAILING[name].at_start:
        assert not (site.parent / "run").exists(), "a run that cannot be has no directory"


@pytest.mark.parametrize("name", [name for name in FAILING if not FAILING[name].recipe_requires])
def test_blocking_the_plugin_that_fails_lets_the_run_go_on(
    name: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(name, site)
    code, _, errors = call(capsys, "run", write_recipe(site.parent), "-p", f"no:{name}")
    assert code == 0, errors
    assert (site.parent / "run" / "metrics.jsonl").exists()


def test_a_duplicate_component_may_be_chosen_by_its_distribution(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("duplicate", site)
    code, _, errors = call(capsys, "run", write_recipe(site.parent), "loss.type=arctic-core:cross_entropy")
    assert code == 0, errors


def test_a_recipe_that_needs_what_a_broken_plugin_brings_tells_of_the_plugin(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("raises", site)
    recipe = write_recipe(site.parent)
    code, _, errors = call(capsys, "validate", recipe, "loss.type=theirs")
    assert code == 2
    assert "there is no loss 'theirs'" in errors
    assert "plugin 'raises' (arctic-bad-raises 0.5) cannot be imported: RuntimeError: no licence" in errors
    for override in ("type=theirs", "loss.type=theirs", "theirs.gamma=2"):
        code, _, errors = call(capsys, "run", recipe, override)
        assert code == 3
        assert "-p no:raises" in errors


def test_all_of_them_together_are_told_by_each_command(site: Path) -> None:
    names = [name for name in FAILING if FAILING[name].at_start]
    for name in names:
        install(name, site)
    recipe = write_recipe(site.parent, *names)
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def arctic(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "arctic_cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    assert arctic("--help").returncode == 0
    listed = arctic("plugins", "list", "--json")
    assert listed.returncode == 0
    plugins: list[dict[str, Any]] = json.loads(listed.stdout)
    for name in LISTED:
        (plugin,) = [each for each in plugins if each["distribution"] == f"arctic-bad-{name}"]
        assert plugin["version"] == "0.5"
        assert FAILING[name].told in plugin["error"]
    validated = arctic("validate", recipe)
    assert validated.returncode == 0
    ran = arctic("run", recipe)
    assert ran.returncode == 3
    for name in names:
        assert len(lines_about(name, validated.stderr)) == 1 + FAILING[name].rival
        assert lines_about(name, ran.stderr)
        assert FAILING[name].remedy in ran.stderr
