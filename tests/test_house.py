"""The rules of the house, checked on the source as it lies here: sizes, imports, names, what distributions declare."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = sorted(
    path.parent for folder in (".", "plugins", "examples") for path in (ROOT / folder).glob("*/pyproject.toml")
)
SOURCES = sorted(path for folder in DISTRIBUTIONS for path in (folder / "src").rglob("*.py"))
GENERATED_FOLDERS = {".git", ".nox", ".venv", "build", "dist", "output", "runs", "site", "__pycache__"}
EVERY_FILE = sorted(
    path for path in ROOT.rglob("*") if path.is_file() and not GENERATED_FOLDERS & set(path.relative_to(ROOT).parts)
)
PYTHON_FILES = [path for path in EVERY_FILE if path.suffix == ".py"]
TEXT_FILES = [
    path
    for path in EVERY_FILE
    if path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".rst", ".jinja"}
    or path.name in {"run", "NOTICE"}
]

HEAVY = {
    "accelerate",
    "datasets",
    "deepspeed",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
}
# Neither a network of layers nor an optimizer can be declared without torch; these are imported when they are built.
IMPORTED_WITH_TORCH = {
    ROOT / "core/src/arctic_training/testing/tiny_model.py",
    ROOT / "plugins/optimizers/src/arctic_optimizers/muon_step.py",
    ROOT / "plugins/optimizers/src/arctic_optimizers/schedule_free_step.py",
}
LONGEST_FILE = 500


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, *, in_functions: bool) -> Iterator[tuple[str, int]]:
    """The modules that are imported below a node and the lines; what only type checkers see is left out."""
    for child in ast.iter_child_nodes(node):
        if is_for_type_checkers(child):
            assert isinstance(child, ast.If)
            for branch in child.orelse:
                yield from imports(branch, in_functions=in_functions)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and not child.level:
            yield child.module or "", child.lineno
        elif in_functions or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imports(child, in_functions=in_functions)


def values(node: ast.AST) -> Iterator[ast.Constant]:
    """The constants below a node that are no docstrings."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant):
            yield child
        elif not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from values(child)


def top(module: str) -> str:
    return module.partition(".")[0]


def settings(folder: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(requirements: Iterable[str]) -> set[str]:
    return {normal(match[0]) for requirement in requirements if (match := re.match(r"[\w.-]+", requirement))}


OURS = {normal(settings(folder)["name"]): folder for folder in DISTRIBUTIONS}
OWNERS = packages_distributions() | {
    path.name: [name] for name, folder in OURS.items() for path in (folder / "src").iterdir()
}


def test_a_file_is_short_enough_to_be_read_in_one_go() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON_FILES}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_nine_of_ten_source_files_are_small() -> None:
    lengths = sorted(len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES)
    assert lengths[len(lengths) * 9 // 10] < 350


def test_every_module_says_what_lives_in_it() -> None:
    assert not [shown(path) for path in SOURCES if not ast.get_docstring(parsed(path))]


def test_no_module_imports_anything_heavy_before_it_is_needed() -> None:
    """Import it inside the function that uses it, so that commands start fast."""
    assert not [
        f"{shown(path)}:{line}: {module}"
        for path in SOURCES
        for module, line in imports(parsed(path), in_functions=False)
        if top(module) in HEAVY and path not in IMPORTED_WITH_TORCH
    ]


@pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=shown)
def test_a_distribution_declares_what_it_imports(folder: Path) -> None:
    """What a distribution of ours declares counts for those that declare it: torch comes with the core."""
    project = settings(folder)
    used = third_party_imports(folder)
    available = required_through_ours(normal(project["name"])) | requirement_names(
        requirement for group in project.get("optional-dependencies", {}).values() for requirement in group
    )
    owners = {module: {normal(name) for name in OWNERS.get(module, [module])} for module in used}
    assert not {module: place for module, place in used.items() if not available & owners[module]}


def third_party_imports(folder: Path) -> dict[str, str]:
    """The packages imported anywhere in a distribution that neither it nor Python holds -> one place of each."""
    used: dict[str, str] = {}
    provided = {path.name for path in (folder / "src").iterdir()} | set(sys.stdlib_module_names)
    for path in (folder / "src").rglob("*.py"):
        for module, line in imports(parsed(path), in_functions=True):
            if top(module) not in provided:
                used.setdefault(top(module), f"{shown(path)}:{line}")
    return used


def required_through_ours(name: str) -> set[str]:
    if name not in OURS:
        return {name}
    requirements = requirement_names(settings(OURS[name])["dependencies"])
    return {name}.union(*(required_through_ours(requirement) for requirement in requirements))


def test_imports_point_towards_the_core() -> None:
    """A plugin imports the core and at most the huggingface plugin; nothing imports the command line."""
    wrong = []
    for path in SOURCES:
        package = path.relative_to(ROOT).parts[path.relative_to(ROOT).parts.index("src") + 1]
        allowed = {package, "arctic_training"}
        if package not in {"arctic_training", "arctic_cli"}:
            allowed.add("arctic_huggingface")
        for module, line in imports(parsed(path), in_functions=True):
            if top(module).startswith("arctic_") and top(module) not in allowed:
                wrong.append(f"{shown(path)}:{line}: {module}")
    assert not wrong


def test_the_core_names_plugins_in_one_file_alone() -> None:
    names = re.compile(r"arctic(_|-plugin-)(huggingface|deepspeed|sft|causal)\b")
    assert not [
        f"{shown(path)}:{node.lineno}: {node.value}"
        for path in (ROOT / "core" / "src").rglob("*.py")
        for node in values(parsed(path))
        if path.name != "_exports.py" and names.search(str(node.value))
    ]


def test_the_module_behind_an_entry_point_holds_hook_implementations_alone() -> None:
    other = []
    for path in SOURCES:
        for node in parsed(path).body if path.name == "plugin.py" and "testing" not in path.parts else []:
            if isinstance(node, ast.FunctionDef):
                fine = [ast.unparse(mark).partition("(")[0] for mark in node.decorator_list] == ["hookimpl"]
            else:
                described = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                fine = described or is_for_type_checkers(node) or isinstance(node, (ast.Import, ast.ImportFrom))
            if not fine:
                other.append(f"{shown(path)}:{node.lineno}")
    assert not other


def test_no_plugin_manager_and_no_registry_lives_in_a_module() -> None:
    """They are built in a function, once a run."""
    makers = {"PluginManager", "Registry", "Components", "create_plugin_manager"}
    assert not [
        f"{shown(path)}:{node.lineno}"
        for path in SOURCES
        for node in parsed(path).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).rpartition(".")[2] in makers
    ]


def hook_specifications() -> list[ast.FunctionDef]:
    module = parsed(ROOT / "core/src/arctic_training/hookspecs.py")
    return [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("arctic_")]


@pytest.mark.parametrize("hook", hook_specifications(), ids=lambda hook: hook.name)
def test_a_hook_is_documented_in_full(hook: ast.FunctionDef) -> None:
    text = ast.get_docstring(hook) or ""
    assert text.partition("\n\n")[0].endswith("."), "open with a sentence that says what it is for"
    for argument in hook.args.args:
        assert re.search(rf"^\s+{argument.arg}: ", text, re.MULTILINE), f"the argument {argument.arg} is not described"
    returns = hook.returns is not None and ast.unparse(hook.returns) != "None"
    assert returns == ("Returns:" in text), "say what is returned, and what None means"
    assert not hook.args.defaults, "pluggy never passes an argument that has a default"
    assert not hook.args.kwonlyargs


@pytest.mark.parametrize("hook", hook_specifications(), ids=lambda hook: hook.name)
def test_a_hook_is_called_somewhere(hook: ast.FunctionDef) -> None:
    call = re.compile(rf"hook\.{hook.name}\(|[\"']{hook.name}[\"']")
    callers = [
        path
        for part in ("core", "arctic_cli")
        for path in (ROOT / part / "src").rglob("*.py")
        if path.name not in {"hookspecs.py", "signatures.py"} and call.search(path.read_text(encoding="utf-8"))
    ]
    assert callers


def test_no_file_holds_a_path_of_one_machine_or_a_host_of_packages() -> None:
    machine = re.compile(r"(?<![\w.])/(root|home|Users|work)/\w")
    host = re.compile(r"^\s*--?(index-url|extra-index-url|find-links|i|f)\b", re.MULTILINE)
    texts = {path: path.read_text(encoding="utf-8") for path in TEXT_FILES}
    assert not [shown(path) for path, text in texts.items() if machine.search(text)]
    assert not [shown(path) for path, text in texts.items() if path.suffix == ".txt" and host.search(text)]


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert not [shown(path) for path in SOURCES if later.search(path.read_text(encoding="utf-8"))]


def test_every_distribution_here_is_in_the_requirements_and_in_the_workspace() -> None:
    folders = {shown(folder) for folder in DISTRIBUTIONS if "examples" not in folder.parts}
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert folders == set(re.findall(r"^-e \./([^\s\[]+)", requirements, re.MULTILINE))
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in tools
    assert folders == set(tools["tool"]["arctic"]["workspace"]["members"])


@pytest.mark.parametrize("name", ["quickstart", "tests"])
def test_the_readme_holds_the_command_that_continuous_integration_runs(name: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"<!-- command: {name} -->\n+```[a-z]*\n(.+)\n```", readme)
    assert len(blocks) == 1, "one line in one block"


def test_every_wheel_has_the_text_of_the_licence_that_it_declares() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    folders = [folder for folder in DISTRIBUTIONS if "examples" not in folder.parts]
    # Build tools take the file beside pyproject.toml, and none that lies above it.
    assert [shown(folder) for folder in folders if (folder / "LICENSE").read_bytes() != text] == []
