"""Writes `documents.jsonl`: the docstrings of whole modules of Python's standard library, a document each.

    python examples/causal/make_text.py

The texts are part of Python and under its licence; nothing is downloaded.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path

MODULES = (
    "argparse", "bisect", "calendar", "collections", "concurrent.futures", "contextlib", "copy", "csv", "datetime",
    "decimal", "difflib", "enum", "fractions", "functools", "gzip", "heapq", "inspect", "io", "itertools", "json",
    "logging", "math", "operator", "pathlib", "pickle", "queue", "random", "re", "secrets", "shutil", "socket",
    "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "time", "tokenize",
    "types", "typing", "unittest", "urllib.parse", "uuid", "weakref", "zipfile",
)  # fmt: skip


def main() -> None:
    path = Path(__file__).parent / "documents.jsonl"
    documents = [text for text in map(document_of, MODULES) if text]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    print(
        f"{path}: {len(documents)} documents, {sum(map(len, documents)):,} characters, Python {sys.version.split()[0]}"
    )


def document_of(name: str) -> str:
    """The docstring of a module and of what it defines, one after the other."""
    module = importlib.import_module(name)
    parts = [f"# {name}", inspect.getdoc(module) or ""]
    for member, value in sorted(vars(module).items()):
        public = not member.startswith("_") and getattr(value, "__module__", None) == name
        if public and (inspect.isclass(value) or inspect.isroutine(value)) and (text := inspect.getdoc(value)):
            parts.append(f"## {name}.{member}\n\n{text}")
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    main()
