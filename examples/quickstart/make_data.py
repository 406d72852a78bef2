"""Writes the quickstart's chats: questions about Python's standard library, answered with the words of its docstrings.

    python examples/quickstart/make_data.py

The rows in data/ are the result of one run and are committed, because docstrings differ between Python versions.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os.path
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

DATA_DIR = Path(__file__).parent / "data"
SHORTEST_ANSWER, LONGEST_ANSWER = 4, 30  # words
EVALUATION_SHARE, FOLLOW_UP_SHARE = 1 / 20, 1 / 6

# What a beginner meets first: few enough topics for a small model to learn its way around.
MODULES = (
    "bisect", "builtins", "calendar", "collections", "contextlib", "copy", "csv", "datetime", "decimal",
    "functools", "glob", "heapq", "io", "itertools", "json", "logging", "math", "os",
    "os.path", "pathlib", "queue", "random", "re", "shutil", "statistics", "string",
    "struct", "subprocess", "tempfile", "textwrap", "threading", "time", "urllib.parse", "uuid", "zipfile",
)  # fmt: skip
# Modules whose members users know by another module's name.
IMPLEMENTATIONS = {"posix", "nt", "posixpath", "ntpath", "genericpath"}

CALLABLE_QUESTIONS = (
    "What does `{path}` do?",
    "What is `{path}` for?",
    "Explain `{path}`.",
    "What does `{path}` do in Python?",
)
CLASS_QUESTIONS = (
    "What is the class `{path}`?",
    "What is `{path}` for?",
    "Explain the class `{path}`.",
)
FOLLOW_UPS = ("And `{path}`?", "What about `{path}`?", "And what does `{path}` do?")


def main() -> None:
    answers = collect_answers()
    questions = {
        path: pick(CALLABLE_QUESTIONS if callable_kind else CLASS_QUESTIONS, path)
        for path, (callable_kind, _) in answers.items()
    }
    training = [path for path in answers if not chosen(path, "evaluation", EVALUATION_SHARE)]
    evaluation = [path for path in answers if chosen(path, "evaluation", EVALUATION_SHARE)]
    texts = {path: text for path, (_, text) in answers.items()}
    for name, paths in (("train", training), ("eval", evaluation)):
        rows = list(chats(paths, questions, texts))
        rows.sort(key=lambda row: digest(json.dumps(row)))
        lines = (json.dumps({"messages": row}, ensure_ascii=False) + "\n" for row in rows)
        (DATA_DIR / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(rows)} chats")


def collect_answers() -> dict[str, tuple[bool, str]]:
    """Dotted path -> (is it a function or method, its answer), each answer once, in the order of the paths."""
    warnings.simplefilter("ignore")
    found: dict[str, tuple[bool, str]] = {}
    taken: set[str] = set()
    for module_name in MODULES:
        for path, value in public_members(importlib.import_module(module_name)):
            answer = first_sentence(inspect.getdoc(value) or "")
            if answer and answer.lower() not in taken:
                taken.add(answer.lower())
                found[path] = (not inspect.isclass(value), answer)
    return found


def public_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The functions and classes of a module, and the methods of those classes, by dotted path."""
    name = "os.path" if module is os.path else module.__name__
    prefix = "" if name == "builtins" else f"{name}."
    for name, value in sorted(vars(module).items()):
        documented = inspect.isclass(value) or inspect.isroutine(value)
        if name.startswith("_") or not documented or not belongs(value, module):
            continue
        yield prefix + name, value
        if inspect.isclass(value):
            for member_name, member in sorted(vars(value).items()):
                if not member_name.startswith("_") and (
                    inspect.isroutine(member) or isinstance(member, (classmethod, staticmethod))
                ):
                    yield f"{prefix}{name}.{member_name}", member


def belongs(value: Any, module: ModuleType) -> bool:
    """Whether a module's member is its own or that of the module behind it, not borrowed from another public one."""
    home = (getattr(value, "__module__", None) or module.__name__).partition(".")[0]
    return home == module.__name__.partition(".")[0] or home.startswith("_") or home in IMPLEMENTATIONS


def first_sentence(docstring: str) -> str:
    """The first sentence of prose on one line; empty where it is too short, too long or no prose."""
    for paragraph in re.split(r"\n\s*\n", docstring.strip()):
        lines = paragraph.splitlines()
        while lines and looks_like_a_signature(lines[0]):
            lines.pop(0)
        text = " ".join(" ".join(lines).split())
        if not text:
            continue
        text = re.split(r"(?<=[a-z)`'\"]\.) (?=[A-Z])", text)[0]
        prose = text[0].isalpha() and text.isascii() and not re.search(r">>>|-- |::|\{\{|==|->", text)
        return text if prose and SHORTEST_ANSWER <= len(text.split()) <= LONGEST_ANSWER else ""
    return ""


def looks_like_a_signature(line: str) -> bool:
    """Whether a line is a call such as `abs(x) -> number`, which many functions written in C put first."""
    return re.match(r"^[\w.]+\(.*\)?\s*(->.*)?$", line) is not None and (
        line.rstrip().endswith((")", ",")) or "->" in line
    )


def chats(paths: list[str], questions: dict[str, str], answers: dict[str, str]) -> Iterator[list[dict[str, str]]]:
    """One chat a path; where a share of the neighbours in the same module follow up, a chat has two turns."""
    families = defaultdict(list)
    for path in paths:
        families[path.rpartition(".")[0]].append(path)
    for family in families.values():
        waiting = list(reversed(family))
        while waiting:
            path = waiting.pop()
            messages = turn(questions[path].format(path=path), answers[path])
            if waiting and chosen(path, "follow-up", FOLLOW_UP_SHARE):
                neighbour = waiting.pop()
                messages += turn(pick(FOLLOW_UPS, neighbour).format(path=neighbour), answers[neighbour])
            yield messages


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def pick(choices: tuple[str, ...], path: str) -> str:
    return choices[digest("wording " + path) % len(choices)]


def chosen(path: str, purpose: str, share: float) -> bool:
    """Whether a path falls into a share of all paths; the same on every machine."""
    return digest(f"{purpose} {path}") < share * 2**64


if __name__ == "__main__":
    main()
