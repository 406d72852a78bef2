"""Writes `pairs.jsonl`: questions of the quickstart, its answer as the better one, and the same with chatter around it.

    python examples/dpo/make_pairs.py

Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path

PAIRS = 240
BEFORE = ("What a great question!", "I am only a language model, but I will try.", "Sure, I would be happy to help!")
AFTER = ("I hope this helps!", "Let me know if there is anything else.", "Please read the documentation to be sure.")


def main() -> None:
    path = Path(__file__).parent / "pairs.jsonl"
    chats = (path.parents[1] / "quickstart/data/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(chat)["messages"][:2] for chat in chats]
    pairs = [pair(number, *row) for number, row in enumerate(rows[:PAIRS])]
    path.write_text("".join(json.dumps(each) + "\n" for each in pairs), encoding="utf-8")
    print(f"{path}: {len(pairs)} pairs")


def pair(number: int, question: dict[str, str], answer: dict[str, str]) -> dict[str, str]:
    chatter = f"{BEFORE[number % 3]} {answer['content']} {AFTER[number // 3 % 3]}"
    return {"prompt": question["content"], "chosen": answer["content"], "rejected": chatter}


if __name__ == "__main__":
    main()
