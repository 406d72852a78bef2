"""What the documentation says, held to the code: recipes validate, commands parse, Python runs, references are current.

The marks of a code block are HTML comments on the line above it; docs/developing.md describes them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from arctic_cli.arguments import divide
from arctic_cli.commands import find_commands
from arctic_cli.legacy import PROGRAM
from arctic_cli.options import Settings, with_common_options, words_of_common_options
from arctic_training import hookspecs
from arctic_training.api import configure
from arctic_training.errors import RecipeError
from arctic_training.recipe import load_recipe
from arctic_training.signatures import specifications_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
READMES = sorted(
    path for folder in ("core", "arctic_cli", "plugins", "examples") for path in (ROOT / folder).rglob("README.md")
)
WRONG = "wrong"
LEAST_RECIPE = {"model": {"name_or_path": "a-model"}, "data": {"sources": ["chats.jsonl"]}}


class Block(NamedTuple):
    """A fenced code block: its page and line, its language, its text, and the mark above it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    found, inside = [], None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if inside is None and (opening := re.fullmatch(r"```(\w*)", line)):
            mark = re.fullmatch(r"<!-- (.+) -->", lines[number - 2] if number > 1 else "")
            inside = Block(page, number, opening[1], "", mark[1] if mark else "")
        elif inside is not None and line == "```":
            found.append(inside)
            inside = None
        elif inside is not None:
            inside = inside._replace(text=f"{inside.text}{line}\n")
    assert inside is None, f"{inside}: this code block has no end"
    return found


BLOCKS = [block for page in [*PAGES, *READMES] for block in blocks_of(page)]


def blocks(language: str, *, without: tuple[str, ...] = (), mark: str = "") -> list[Any]:
    chosen = [b for b in BLOCKS if b.language == language and b.mark not in without and (not mark or b.mark == mark)]
    return [pytest.param(block, id=str(block)) for block in chosen]


def commands() -> list[Any]:
    """Each `arctic` command of a bash block as its words, without comments."""
    found = []
    for block in (block for block in BLOCKS if block.language == "bash"):
        for offset, line in enumerate(block.text.splitlines(), start=1):
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] in (["arctic"], [PROGRAM]):
                    found.append(pytest.param(words, id=f"{block.page.relative_to(ROOT)}:{block.line + offset}"))
    return found


@pytest.mark.parametrize("block", blocks("yaml", without=(WRONG,)))
def test_every_recipe_in_the_documentation_validates(block: Block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(json.dumps(LEAST_RECIPE))
    code = tmp_path / "path/to/custom_trainers.py"
    code.parent.mkdir(parents=True)
    code.touch()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(block.text)
    given = load_recipe(recipe).data
    configure(recipe, [f"{name}={json.dumps(value)}" for name, value in LEAST_RECIPE.items() if name not in given])


@pytest.mark.parametrize("block", blocks("yaml", mark=WRONG))
def test_every_wrong_recipe_gives_the_messages_that_are_shown(block: Block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(block.text)
    shown = next(other for other in BLOCKS if other.page == block.page and other.line > block.line)
    assert shown.language == "text"
    with pytest.raises(RecipeError) as caught:
        configure("recipe.yaml")
    assert str(caught.value).splitlines() == shown.text.splitlines()


@pytest.mark.parametrize("words", commands())
def test_every_command_in_the_documentation_parses(words: list[str]):
    name = "run" if words[0] == PROGRAM else words[1]
    arguments = words[1:] if words[0] == PROGRAM else words[2:]
    if name == "--version":
        return
    table = find_commands()
    assert name in table.entries, f"there is no command {name}"
    command = with_common_options(table.entries[name].load())
    context = command.make_context(name, arguments, obj=Settings())
    if isinstance(command, click.Group) and arguments:
        child, below, rest = command.resolve_command(context, arguments)
        assert below is not None
        below.make_context(child, rest, parent=context, obj=Settings())


def test_launcher_options_in_the_documentation_are_not_taken_for_our_own():
    with_value, flags = words_of_common_options()
    for parameter in commands():
        words = parameter.values[0]
        if "--num_gpus" in words:
            divided = divide(words[2:] if words[0] == "arctic" else words[1:], with_value=with_value, flags=flags)
            assert divided.launcher[0] == "--num_gpus"
            assert divided.recipe.endswith(".yaml")


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_runs(block: Block, monkeypatch):
    code = compile(block.text, str(block), "exec")
    if block.page.name == "hooks.md":  # signatures, whose annotations name what is imported for type checkers alone
        return
    exec(code, {"__name__": "documentation"})


@pytest.mark.slow
def test_the_plugin_of_the_readme_has_fifteen_lines_and_works_as_it_stands(tmp_path, tiny_model, tiny_chats):
    files = {block.mark.removeprefix("plugin: "): block.text for block in BLOCKS if block.mark.startswith("plugin: ")}
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)
    assert sum(bool(line.strip()) for text in files.values() for line in text.splitlines()) <= 15
    run_python("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, source, cwd=tmp_path)
    listed = json.loads(run_python("arctic_cli", "plugins", "--json", site=site, cwd=tmp_path))
    assert "arctic_step_end" in next(plugin["hooks"] for plugin in listed if plugin["name"] == "perplexity")
    recipe = {
        "model": {"name_or_path": str(tiny_model), "dtype": "fp32"},
        "data": {"sources": [str(tiny_chats)], "num_proc": 1, "dl_num_workers": 0},
        "engine": {"type": "torch"},
        "train_iters": 2,
        "run_dir": "run",
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    run_python("arctic_cli", "run", "recipe.yaml", site=site, cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 2
    assert all(step["perplexity"] > step["loss"] > 0 for step in steps)


def test_the_recipe_of_the_readme_has_ten_lines():
    (block,) = (block for block in BLOCKS if block.mark == "recipe of one's own")
    assert len(block.text.splitlines()) == 10


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_the_commands_of_the_readme_are_one_line_each(name: str):
    (block,) = (block for block in BLOCKS if block.mark == f"command: {name}")
    assert len(block.text.splitlines()) == 1


def test_the_references_are_up_to_date():
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_hook_has_a_heading_in_the_reference():
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/reference/hooks.md").read_text(), re.MULTILINE)
    assert headings == list(specifications_of(hookspecs))


def test_every_hook_that_the_documentation_names_exists():
    known = {*specifications_of(hookspecs), "arctic_training", "arctic_cli", "arctic_moe"}
    plugins = ("arctic_focal", "arctic_neftune", *(f"arctic_{path.name}" for path in (ROOT / "plugins").iterdir()))
    packages = (*plugins, "arctic_home", "arctic_plugin")
    for page in [*PAGES, *READMES]:
        for name in set(re.findall(r"\barctic_[a-z_]+[a-z]\b(?![*_])", page.read_text())):
            assert name in known or name.startswith(packages), f"{page.relative_to(ROOT)} names {name}"


def test_the_pages_build_without_a_warning(tmp_path):
    arguments = ["build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    run_python("mkdocs", *arguments, cwd=ROOT)
    assert (tmp_path / "site/reference/hooks.html").is_file()


@pytest.mark.parametrize("page", [ROOT / "README.md", *READMES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_readmes_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def run_python(module: str, *arguments: Any, cwd: Path, site: Path | None = None) -> str:
    """What `python -m module` prints; fails with what it says on standard error."""
    environment = {**os.environ, "ARCTIC_HOME": str(cwd / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(site)} if site else {}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
