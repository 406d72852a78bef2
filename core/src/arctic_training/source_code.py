"""Hashes of code, so that a changed line prepares data anew: of a class and its bases, of a file and its package.

What pip installed is known by package; of a lone file, such as the code beside a recipe, the helpers count that it
imports.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Set
from importlib.util import find_spec
from pathlib import Path

Files = dict[str, Path]
"""Files by a name that does not depend on where they lie."""


def source_hash(cls: type, packages: Set[str] = frozenset()) -> str | None:
    """A hash of the code behind a class; None where the code stands in no file, as in a notebook.

    Of each class in its line of bases, all modules of its package count: it may call any of them. So do those of
    ``packages``, names of installed packages, where a module among them imports from one.
    """
    files: Files = {}
    for base in cls.__mro__[:-1]:
        if base.__module__.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
            continue
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if file is None or not Path(file).is_file():
            return None
        files |= _files_of(Path(file))
    return _hash(files | _of_packages(files, packages), cls.__qualname__)


def file_hash(path: Path) -> str:
    """A hash of the package that a file belongs to, or of the file and what it imports."""
    return _hash(_files_of(path), "")


def _of_packages(files: Files, packages: Set[str]) -> Files:
    """The files of those packages that files import from, directly or through each other."""
    found: Files = {}
    waiting = [files]
    left = packages - {name.partition("/")[0] for name in files}
    while waiting and left:
        imported = {name for path in waiting.pop().values() for name in _imported(path)}
        for name in sorted(left & imported):
            spec = find_spec(name)
            for place in (spec.submodule_search_locations or []) if spec else []:
                below = _below(Path(place))
                found |= below
                waiting.append(below)
        left -= imported
    return found


def _files_of(path: Path) -> Files:
    root = path
    while (root.parent / "__init__.py").is_file():
        root = root.parent
    return _with_helpers(path) if root == path else _below(root)


def _below(folder: Path) -> Files:
    return {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob("*.py")}


def _with_helpers(path: Path) -> Files:
    """A file that belongs to no package, and the files and packages that it imports and that nobody installed."""
    files: Files = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file.name in files:
            continue
        files[file.name] = file
        for name in _imported(file):
            for place in _places(name):
                if place.is_dir():
                    files |= _below(place)
                else:
                    waiting.append(place)
    return files


def _imported(path: Path) -> frozenset[str]:
    """The top-level modules that a file imports, wherever in it."""
    return _imports_of(path.read_bytes())


@functools.cache  # by what stands there: training data, evaluation data and each source ask for the same files
def _imports_of(code: bytes) -> frozenset[str]:
    try:
        waiting: list[ast.AST] = list(ast.parse(code).body)
    except (SyntaxError, ValueError):  # no Python source, such as an extension module
        return frozenset()
    names = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):  # no expression holds an import
            inner = getattr(node, block, ())
            waiting += inner if isinstance(inner, list) else ()
    return frozenset(names)


def _places(name: str) -> list[Path]:
    """The file or folders of a module, unless it came with Python or was installed."""
    if name in sys.stdlib_module_names:
        return []
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a module that was put into sys.modules by hand has none
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
    return [path for path in map(Path, places) if not _is_installed(path)]


def _is_installed(path: Path) -> bool:
    schemes = ("stdlib", "platstdlib", "purelib", "platlib")
    return {"site-packages", "dist-packages"} & set(path.parts) != set() or any(
        path.is_relative_to(sysconfig.get_path(scheme)) for scheme in schemes
    )


def _hash(files: Files, name: str) -> str:
    total = hashlib.sha256(name.encode())
    for file, path in sorted(files.items()):
        total.update(file.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
