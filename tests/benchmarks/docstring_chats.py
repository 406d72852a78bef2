"""Writes chats about Python's standard library, answered with whole docstrings: rows for the benchmarks of data.

    python tests/benchmarks/docstring_chats.py OUT.jsonl [--rows N]

Without --rows there is one chat for each docstring, or for two of them. More are made by asking again in other words
and answering with the paragraphs in another order, so that no two rows are equal. Deterministic for one Python.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAKE_DATA = Path(__file__).parents[2] / "examples" / "quickstart" / "make_data.py"
# They open a browser or a window, print a poem, or hold nothing but tests.
LEFT_OUT = {"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
SHORTEST_ANSWER, LONGEST_ANSWER = 40, 4000  # characters
FOLLOW_UP_EVERY = 5
QUESTIONS = (
    "What does `{path}` do in Python?",
    "I came across `{path}` while reading code{number}. What is it?",
    "Explain `{path}`, please{number}.",
    "How is `{path}` used{number}?",
    "Remind me what the documentation says of `{path}`{number}.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, help="chats to write; as many as the docstrings give by default")
    arguments = parser.parse_args()
    answers = collect_answers()
    lines = (json.dumps({"messages": messages}) + "\n" for messages in chats(answers, again=arguments.rows is not None))
    with arguments.path.open("w", encoding="utf-8") as file:
        file.writelines(itertools.islice(lines, arguments.rows))


def collect_answers() -> list[tuple[str, str]]:
    """(dotted path, docstring) of all that the standard library documents, each docstring once."""
    warnings.simplefilter("ignore")
    public_members = runpy.run_path(str(MAKE_DATA))["public_members"]
    answers: dict[str, str] = {}
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        if name.startswith("_"):
            continue
        try:
            module = importlib.import_module(name)
        except ImportError:  # of another platform, or not built into this Python
            continue
        for path, value in public_members(module):
            text = (inspect.getdoc(value) or "")[:LONGEST_ANSWER].strip()
            if len(text) >= SHORTEST_ANSWER:
                answers.setdefault(text, path)
    return [(path, text) for text, path in answers.items()]


def chats(answers: list[tuple[str, str]], *, again: bool) -> Iterator[list[dict[str, Any]]]:
    """One chat a docstring, every fifth with the next one as a second turn; from the start again without an end, if so
    asked."""
    for round_number in itertools.count() if again else range(1):
        waiting = iter(answers)
        for number, (path, text) in enumerate(waiting):
            messages = turn(path, text, round_number)
            if number % FOLLOW_UP_EVERY == 0 and (follow_up := next(waiting, None)):
                messages += turn(*follow_up, round_number)
            yield messages


def turn(path: str, text: str, round_number: int) -> list[dict[str, Any]]:
    """A question and its answer; from the second round on with a number, and the paragraphs rotated."""
    paragraphs = text.split("\n\n")
    first = round_number % len(paragraphs)
    question = QUESTIONS[round_number % len(QUESTIONS)]
    asked = question.format(path=path, number=f" (question {round_number})" if round_number else "")
    if round_number and "{number}" not in question:
        asked += f" Asked {round_number} times."
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "\n\n".join(paragraphs[first:] + paragraphs[:first])},
    ]


if __name__ == "__main__":
    main()
