"""Canaries: secrets that must turn up nowhere, and code that must never run, in runs of the real command.

Every kind of secret has a value of its own, so a leak names its source. Code that must not run makes a file.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from arctic_training.testing.tiny_llama import make_tiny_llama

ARCTIC = Path(sys.executable).with_name("arctic")
IN_ENVIRONMENT = {
    "HF_TOKEN": "canary-hf-0a1b2c3d",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+0a1b2c3d",
    "WANDB_API_KEY": "canary-wandb-0a1b2c3d",
    "OPENAI_API_KEY": "canary-openai-0a1b2c3d",
    "OUR_OWN_TOKEN": "canary-own-0a1b2c3d",
    "DATABASE_URL": "postgres://me:canary-database-0a1b2c3d@localhost/rows",
}
IN_RECIPE = {
    "tokenizer": "canary-tokenizer-0a1b2c3d",
    "source": "canary-source-0a1b2c3d",
    "quoted": "canary-'quoted'-0a1b2c3d",
    "address": "canary-address-0a1b2c3d",
    "override": "canary-override-0a1b2c3d",
    "short": "canary7",  # too short to be looked for in texts: known by its name alone
}
CANARY = "canary"
READABLE = "<|pad|>"

TRAIN_PY = """
import logging, os, sys, warnings
import fsspec
from fsspec.implementations.local import LocalFileSystem
from arctic_training import SFTTrainer, hookimpl
from arctic_training.errors import ArcticError

HF, OWN = os.environ["HF_TOKEN"], os.environ["OUR_OWN_TOKEN"]

class Vault(LocalFileSystem):
    # Files of this machine by the addresses vault://user:password@host/path.
    protocol = "vault"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.partition("@host/")[2] if "://" in path else path

fsspec.register_implementation("vault", Vault, clobber=True)

class Canary(SFTTrainer):
    name = "canary"

    def loss(self, batch):
        if self.config.seed == 13:
            raise RuntimeError(f"401 for {HF} at https://me:{OWN}@host/login?token={OWN}, {[OWN]!r}")
        if self.config.seed == 14:
            raise ArcticError(f"cannot log in as {OWN}", where=f"https://me:{HF}@host", remedy=f"not {HF}")
        return super().loss(batch)

@hookimpl
def arctic_step_end(step, metrics, trainer):
    metrics["note"] = f"logged in with {HF}"
    metrics["headers"] = {"Authorization": f"Bearer {OWN}", "tokens": 5}
    print("printed", HF, flush=True)
    print("printed", OWN, file=sys.stderr)
    logging.getLogger("somebody").warning("logged %s", OWN)
    warnings.warn(f"warned of {HF}")
    trainer.run.say(f"said {OWN}")
    trainer.run.event("login", step=step, token=HF, url=f"https://me:{OWN}@host/")

@hookimpl
def arctic_checkpoint_state(trainer):
    return {"tracker": {"run_id": "run-1", "api_key": HF, "url": f"https://me:{OWN}@host/"}}
"""


@attrs.frozen
class Outcome:
    code: int
    text: str


@attrs.frozen
class Place:
    """A folder of a test: what it is given in ``inputs``, and everything that is written in the others."""

    root: Path
    marker: Path

    @property
    def project(self) -> Path:
        return self.root / "inputs" / "project"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def address(self) -> str:
        """The inputs by an address with a password."""
        return f"vault://me:{IN_RECIPE['address']}@host{self.root}/inputs"

    def arctic(self, *words: str) -> Outcome:
        """The installed command, with every folder that it or a library may write to below ``root``."""
        folders = {"HOME": "home", "TMPDIR": "temporary", "ARCTIC_HOME": "arctic-home", "HF_HOME": "hf-home"}
        for name in folders.values():
            (self.root / name).mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD"))}
        environment |= {name: str(self.root / folder) for name, folder in folders.items()}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [str(ARCTIC), *words], cwd=self.work, env=environment | IN_ENVIRONMENT, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout + done.stderr)

    def leaks(self) -> list[str]:
        """The files, outside what was given, in which a canary stands, with what stands there."""
        found = []
        for path in sorted(self.root.rglob("*")):
            if path.is_relative_to(self.root / "inputs"):
                continue
            content = path.read_bytes() if path.is_file() else b""
            for form in (CANARY.encode(), CANARY.encode("utf-16-le")):
                if form in content or CANARY in path.name:
                    at = content.find(form)
                    found.append(f"{path.relative_to(self.root)}: {content[max(at - 60, 0) : at + 60]!r}")
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A project, a model, data and a checkpoint folder, each full of what must not run."""
    root = tmp_path_factory.mktemp("birds")
    place = Place(root, root / "marker")
    for folder in (place.project, place.work, root / "inputs/data"):
        folder.mkdir(parents=True)
    make_tiny_llama(root / "inputs/model")
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
        for n in range(24)
    ]
    (root / "inputs/data/chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place.project / "train.py").write_text(TRAIN_PY)
    checkpoints = place.work / "checkpoints"
    for folder in (root / "inputs/model", root / "inputs/data", place.work, checkpoints, checkpoints / "global_step_9"):
        lay_canaries(folder, place.marker)
    lay_canaries(place.project, place.marker, besides=("train.py",))
    return place


class Marks:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.path, "w")


def lay_canaries(folder: Path, marker: Path, besides: tuple[str, ...] = ()) -> None:
    """Files that somebody might run or unpickle because of how they are called and where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    scripts = ("train.py", "conftest.py", "sitecustomize.py", "usercustomize.py", "plugin.py", "torch.py", "yaml.py")
    for name in (*scripts, "modeling_llama.py", "tokenization_llama.py", "setup.py", "chats.py", "__init__.py"):
        if name not in besides:
            (folder / name).write_text(f"open({str(marker)!r}, 'a').write(__file__)\n")
    for name in ("pytorch_model.bin", "adapter_model.bin", "engine.pt", "random-0.pt", "rows.pkl", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Marks(marker)))


@pytest.fixture(scope="module")
def recipe(place: Place) -> str:
    content = {
        "type": "canary",
        "model": {"name_or_path": str(place.root / "inputs/model"), "dtype": "fp32"},
        "tokenizer": {"type": "huggingface", "kwargs": {"token": IN_RECIPE["tokenizer"], "pad_token": READABLE}},
        "data": {
            "sources": [
                f"{place.root}/inputs/data/chats.jsonl",
                {
                    "name_or_path": f"local://{place.root}/inputs/data/chats.jsonl",
                    "kwargs": {
                        "storage_options": {
                            "key": IN_RECIPE["short"],
                            "secret": IN_RECIPE["source"],
                            "client_kwargs": {"headers": {"Authorization": IN_RECIPE["quoted"]}},
                        }
                    },
                },
            ],
            "eval_sources": [{"name_or_path": f"{place.address}/data/chats.jsonl", "split": "train"}],
            "num_proc": 1,
            "dl_num_workers": 0,
            "max_length": 64,
        },
        "eval_interval": 2,
        "engine": {"type": "torch"},
        "train_iters": 2,
        "train_log_metrics_path": "metrics.jsonl",
        "run_dir": "run",
        "checkpoint": [
            {"output_dir": "checkpoints", "auto_resume": True, "save_end_of_training": True},
            {"type": "huggingface", "output_dir": "export", "save_end_of_training": True},
        ],
    }
    path = place.project / "recipe.yaml"
    path.write_text(json.dumps(content))
    return str(path)


OVERRIDE = f"data.sources.1.kwargs.storage_options.token={IN_RECIPE['override']}"


@pytest.fixture(scope="module")
def outcomes(place: Place, recipe: str) -> dict[str, Outcome]:
    """A training, its resume, and failures of several kinds."""
    return {
        "trained": place.arctic("run", recipe, OVERRIDE),
        "resumed": place.arctic("run", recipe, OVERRIDE, "train_iters=4", "run_dir=resumed", "-v"),
        "unforeseen": place.arctic("run", recipe, OVERRIDE, "seed=13", "checkpoint=[]", "run_dir=unforeseen"),
        "foreseen": place.arctic("run", recipe, "seed=14", "checkpoint=[]", "run_dir=foreseen", "--traceback"),
    }


@pytest.fixture(scope="module")
def refusals(place: Place, recipe: str, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """Errors before a run begins."""
    name = "data.eval_sources.0.name_or_path"
    return {
        "no such file": place.arctic("data", recipe, f"{name}={place.address}/no-such-file.jsonl"),
        "no such key": place.arctic("validate", recipe, OVERRIDE.replace("data.sources.1", "data.sources.7")),
        "shown": place.arctic("validate", recipe, OVERRIDE, "-v"),
        "shown as JSON": place.arctic("validate", recipe, OVERRIDE, "--json"),
        "explained": place.arctic("cache", "explain", recipe, OVERRIDE),
        "run again": place.arctic("run", "run/recipe.yaml"),
    }


FAULTY = """
import os
from arctic_training.testing.tiny import TinyTrainer

class Faulty(TinyTrainer):
    name = "faulty"

    def loss(self, batch):
        if self.global_step == 1:
            raise ValueError(f"cannot log in with {os.environ['HF_TOKEN']} or {self.config.data.sources[0].texts}")
        return super().loss(batch)
"""


def faulty_project(root: Path) -> Place:
    """A project whose loss fails in its second step, with secrets in what it says."""
    place = Place(root, root / "marker")
    for folder in (place.project, place.work):
        folder.mkdir(parents=True)
        lay_canaries(folder, place.marker)
    (place.project / "train.py").write_text(FAULTY)
    texts = [f"see https://me:{IN_RECIPE['address']}@host/ {number}" for number in range(8)]
    recipe = {
        "type": "faulty",
        "plugins": {"use": ["arctic_training.testing.tiny"]},
        "model": {"dtype": "fp32"},
        "data": {"sources": [{"type": "tiny", "texts": texts}], "dl_num_workers": 0, "num_proc": 1},
        "optimizer": {"type": "adamw", "learning_rate": 1e-2},
        "scheduler": {"type": "constant"},
        "checkpoint": {"output_dir": "checkpoints", "save_every_n_steps": 1},
        "train_iters": 3,
        "run_dir": "run",
    }
    (place.project / "recipe.yaml").write_text(json.dumps(recipe))
    return place


def test_an_error_that_quotes_secrets_is_told_without_them(tmp_path: Path) -> None:
    place = faulty_project(tmp_path)
    outcome = place.arctic("run", str(place.project / "recipe.yaml"), "engine.type=torch", "--traceback", "-v")
    assert outcome.code == 1
    assert (
        "ValueError: cannot log in with <secret left out> or ['see https://<secret left out>@host/ 0'" in outcome.text
    )
    assert CANARY not in outcome.text
    assert (place.work / "checkpoints/global_step_1/manifest.json").is_file()
    assert not place.leaks()
    assert not place.marker.exists()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="DeepSpeed starts `python -m`, which PYTHONSAFEPATH tames from 3.11 on"
)
def test_two_ranks_and_their_launcher_keep_secrets_and_run_nothing_either(tmp_path: Path) -> None:
    place = faulty_project(tmp_path)
    override = f"data.sources.0.texts.0=https://me:{IN_RECIPE['override']}@host/"
    outcome = place.arctic("run", str(place.project / "recipe.yaml"), override, "--num_gpus", "2")
    assert outcome.code == 1, outcome.text
    assert ": ValueError: cannot log in with <secret left out>" in outcome.text
    assert CANARY not in outcome.text
    assert (place.work / "checkpoints/global_step_1/manifest.json").is_file()
    assert not place.leaks()
    assert not place.marker.exists(), place.marker.read_text()


@pytest.mark.slow
def test_runs_end_as_they_should_with_canaries_around(outcomes: dict[str, Outcome]) -> None:
    codes = {name: outcome.code for name, outcome in outcomes.items()}
    assert codes == {"trained": 0, "resumed": 0, "unforeseen": 1, "foreseen": 1}, outcomes["trained"].text
    assert "resumed from" in outcomes["resumed"].text


@pytest.mark.slow
def test_no_secret_reaches_a_standard_stream(outcomes: dict[str, Outcome], refusals: dict[str, Outcome]) -> None:
    for name, outcome in {**outcomes, **refusals}.items():
        lines = [line for line in outcome.text.splitlines() if CANARY in line.replace("type: canary", "")]
        assert not [line for line in lines if any(v in line for v in secrets())], name


@pytest.mark.slow
def test_no_secret_reaches_a_file(place: Place, outcomes: dict[str, Outcome], refusals: dict[str, Outcome]) -> None:
    assert not [leak for leak in place.leaks() if any(value in leak for value in secrets())]


def secrets() -> list[str]:
    """What identifies each canary, however it is quoted."""
    words = [value.rpartition("@")[0].rpartition(":")[2] or value for value in IN_ENVIRONMENT.values()]
    return [word.split("-0a1b")[0] for word in [*words, *IN_RECIPE.values()]] + ["0a1b2c3d"]


@pytest.mark.slow
def test_all_else_stays_readable(place: Place, outcomes: dict[str, Outcome], refusals: dict[str, Outcome]) -> None:
    record = (place.work / "run/recipe.yaml").read_text()
    assert f'pad_token: "{READABLE}"' in record
    assert json.loads((place.work / "run/run.json").read_text())["command"][-1].endswith("token=<secret left out>")
    lines = [json.loads(line) for line in (place.work / "run/metrics.jsonl").read_text().splitlines()]
    step = next(line for line in lines if line["kind"] == "train")
    assert step["headers"]["tokens"] == 5
    assert step["note"] == "logged in with <secret left out>"
    assert "RuntimeError: 401 for <secret left out> at https://<secret left out>@host" in outcomes["unforeseen"].text
    assert "/no-such-file.jsonl" in refusals["no such file"].text


@pytest.mark.slow
def test_a_recorded_recipe_says_which_secrets_to_give_again(refusals: dict[str, Outcome]) -> None:
    outcome = refusals["run again"]
    assert outcome.code == 2
    for path in ("tokenizer.kwargs.token", "data.sources.1.kwargs.storage_options.secret"):
        assert f"{path}: the secret was left out when this recipe was recorded; give it again" in outcome.text


@pytest.mark.slow
def test_nothing_runs_because_of_where_it_lies(place: Place, outcomes: dict[str, Outcome], refusals: Any) -> None:
    assert not place.marker.exists(), place.marker.read_text()
    assert "passed over" in outcomes["trained"].text  # the directory of pickles, which has no manifest
