"""The checks of the project, one session each: `nox -s tests`, `nox -s plugin -- sft`; `nox --list` names them all.

A session installs what it needs into an environment of its own. With `--no-venv` the sessions that need everything run
in the environment that is active, which is what continuous integration does after installing it once.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PLUGINS = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("plugins/*/pyproject.toml"))
DISTRIBUTIONS = ("core", "arctic_cli", *PLUGINS)
TEST_TOOLS = ("pytest", "pytest-timeout", "hypothesis", "psutil")
EVERY_TEST = "not gpu and not peers and not long"
PEERS = {
    "trl": ("-c", "constraints.txt", "trl==1.16.*"),
    "arctictraining": ("arctic-training==0.8.*",),
    "sentence_transformers": ("-c", "constraints.txt", "sentence-transformers==6.2.*"),
}
PREPARE_DATA = ("trl", "arctictraining")

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_external_run = False


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests of every distribution, and those that cross them."""
    install_everything(session)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take longer, on one process."""
    install_everything(session)
    session.run("python", "-m", "pytest", "-m", "slow and not distributed and not gpu and not long", *session.posargs)


@nox.session
def distributed(session: nox.Session) -> None:
    """The tests that start several ranks."""
    install_everything(session)
    session.run("python", "-m", "pytest", "-m", "distributed and not gpu and not long", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """The tests that take minutes each: a fault at every file operation of a save, ranks that answer no more."""
    install_everything(session)
    session.run("python", "-m", "pytest", "-m", "long", *session.posargs)


@nox.session
def kills(session: nox.Session) -> None:
    """Runs that are killed fifty times, on every engine and ZeRO stage; takes about an hour and a half."""
    install_everything(session)
    session.env["ARCTIC_KILLS"] = "50"
    session.run("python", "-m", "pytest", "-m", "slow", "-s", "tests/test_restarted_runs.py", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """The tests that need an accelerator; the active environment has to hold a torch that was built for it."""
    session.run("python", "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, and the rules of who may import whom."""
    install_everything(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """The types of every distribution."""
    install_everything(session)
    session.run("mypy", *session.posargs)


@nox.session
def core_only(session: nox.Session) -> None:
    """The core's tests with the core alone: no plugin is there, nor what plugins need."""
    install_alone(session, "core")
    session.run("python", "-m", "pytest", "core/tests", *session.posargs)


@nox.session
def plugin(session: nox.Session) -> None:
    """`nox -s plugin -- NAME`: a plugin's tests with the core and only what the plugin declares."""
    if not session.posargs:
        session.error("which plugin? for example: nox -s plugin -- sft")
    name, *arguments = session.posargs
    folder = f"plugins/{name}"
    if not (ROOT / folder / "pyproject.toml").is_file():
        offered = ", ".join(sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml")))
        session.error(f"there is no plugin {name!r}; there are: {offered}")
    install_alone(session, folder)
    session.run("python", "-m", "pytest", f"{folder}/tests", *arguments)


@nox.session
def startup(session: nox.Session) -> None:
    """How long the commands take to answer, and that none of them imports torch."""
    install_everything(session)
    session.run("python", "-m", "pytest", "-m", EVERY_TEST, "arctic_cli/tests/test_startup.py", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Every example, run as its reader would."""
    install_everything(session)
    where = ("examples", "tests/test_examples.py", "tests/test_third_party_plugin.py")
    session.run("python", "-m", "pytest", "-m", EVERY_TEST, *where, *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """The wheels of all distributions, installed together into a fresh environment and started there."""
    refuse_the_active_environment(session)
    wheels = Path(session.create_tmp()).resolve() / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    session.run(
        "python",
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--wheel-dir",
        str(wheels),
        *(f"./{folder}" for folder in DISTRIBUTIONS),
    )
    session.install("-c", "constraints.txt", *sorted(str(wheel) for wheel in wheels.glob("*.whl")))
    session.chdir(session.create_tmp())  # so that nothing is imported from the repository
    session.run("arctic", "--version")
    session.run("arctic", "plugins")
    session.run("arctic", "--help", silent=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors; its references are generated from the code."""
    install_everything(session)
    session.run("python", "docs/build.py", *session.posargs)


@nox.session
def peers(session: nox.Session) -> None:
    """Losses and data preparation against other frameworks, each of which gets an environment of its own."""
    install_everything(session)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in constraints if line.startswith("torch=="))  # any other brings gigabytes of CUDA
    options = []
    for name, requirements in PEERS.items():
        folder = Path(session.create_tmp()).resolve() / name
        python = str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        session.run("python", "-m", "venv", str(folder))
        session.run(python, "-m", "pip", "install", "--quiet", torch, *requirements, external=True)
        if name in PREPARE_DATA:
            options += [f"--{name}-python", python]
        session.env[f"ARCTIC_{name.upper()}_PYTHON"] = python
    session.run("python", "-m", "pytest", "-m", "peers")
    session.run("python", "tests/benchmarks/data_preparation.py", *options, *session.posargs)


def install_everything(session: nox.Session) -> None:
    """All distributions, editable, with the test tools; nothing where the active environment is used as it is."""
    if session.venv_backend != "none":
        session.install("-r", "requirements-test.txt")


def install_alone(session: nox.Session, folder: str) -> None:
    """One distribution, the distributions of this repository that it declares, and the test tools."""
    refuse_the_active_environment(session)
    editable = [argument for part in declared_here(folder) for argument in ("-e", f"./{part}")]
    session.install("-c", "constraints.txt", *editable, *TEST_TOOLS)


def refuse_the_active_environment(session: nox.Session) -> None:
    if session.venv_backend == "none":
        session.error("this session proves what a distribution declares, and needs an environment of its own")


def declared_here(folder: str) -> list[str]:
    """The folders of a distribution and of those here that it depends on; what is needed comes first."""
    folders = {distribution_name(each): each for each in DISTRIBUTIONS}
    found: list[str] = []
    for requirement in nox.project.load_toml(ROOT / folder / "pyproject.toml")["project"]["dependencies"]:
        name = re.split(r"[^\w.-]", requirement)[0]
        if name in folders:
            found += [each for each in declared_here(folders[name]) if each not in found]
    return [*found, folder]


def distribution_name(folder: str) -> str:
    name: str = nox.project.load_toml(ROOT / folder / "pyproject.toml")["project"]["name"]
    return name


if __name__ == "__main__":
    sys.exit("run this file with nox: nox --list")
