"""Writes pairs of what a function of Python's standard library is said to do, and the statements that do it.

    python examples/embed/make_pairs.py                     # what this example ships: a few modules
    python examples/embed/make_pairs.py FOLDER              # all modules, for a real encoder
    python examples/embed/make_pairs.py FOLDER --trees      # the same, with syntax trees in place of code

`pairs.jsonl` is to be trained on, `held-out.jsonl` holds functions of other modules; of trees, other functions of the
same modules. The texts are part of Python and under its licence; nothing is downloaded.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHIPPED = ("calendar.py", "collections", "csv.py", "datetime.py", "difflib.py", "email", "fractions.py", "functools.py",
           "gzip.py", "heapq.py", "http", "json", "logging", "pathlib.py", "random.py", "shutil.py", "statistics.py",
           "string.py", "tarfile.py", "textwrap.py", "typing.py", "urllib", "uuid.py", "xml", "zipfile")  # fmt: skip
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip"}
LONGEST_CODE = 1000
"""Characters; encoders read the beginning anyway."""


def main() -> None:
    trees = "--trees" in sys.argv
    folders = [argument for argument in sys.argv[1:] if argument != "--trees"]
    whole = bool(folders)
    folder = Path(folders[0]) if whole else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, list[str]] = {"pairs.jsonl": [], "held-out.jsonl": []}
    seen: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if LEFT_OUT.intersection(module.parts) or not (whole or module.parts[0] in SHIPPED):
            continue
        for query, code, statements in pairs_of(path):
            if not seen & {query, code}:
                seen |= {query, code}
                positive = " ".join(map(ast.dump, statements))[:LONGEST_CODE] if trees else code
                is_held_out = hashlib.sha256((query if trees else module.as_posix()).encode()).digest()[0] < 256 * 0.2
                line = json.dumps({"query": query, "positive": positive, "module": module.as_posix()}) + "\n"
                texts["held-out.jsonl" if is_held_out else "pairs.jsonl"].append(line)
    for name, lines in texts.items():
        (folder / name).write_text("".join(lines), encoding="utf-8")
        print(f"{folder / name}: {len(lines)} pairs, Python {sys.version.split()[0]}")


def pairs_of(path: Path) -> Iterator[tuple[str, str, list[ast.stmt]]]:
    """The first sentence of each function's docstring, and its statements without name, arguments and docstring: as
    text, and as they are."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
            query = " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
            code = "\n".join(map(ast.unparse, node.body[1:]))[:LONGEST_CODE]
            if len(query) >= 20 and len(code) >= 60:
                yield query, code, node.body[1:]


if __name__ == "__main__":
    main()
