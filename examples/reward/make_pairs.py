"""Writes pairs.jsonl: questions of the quickstart, each with its answer and, as the worse one, half of that answer."""

import json
from pathlib import Path

HERE = Path(__file__).parent
NUMBER = 240

lines = (HERE.parent / "quickstart/data/train.jsonl").read_text().splitlines()
chats = [chat for chat in (json.loads(line)["messages"] for line in lines) if len(chat) == 2][:NUMBER]
with open(HERE / "pairs.jsonl", "w") as file:
    for question, answer in chats:
        words = answer["content"].split()
        half = {"role": "assistant", "content": " ".join(words[: len(words) // 2 + 1])}
        if half != answer:
            file.write(json.dumps({"prompt": [question], "chosen": [answer], "rejected": [half]}) + "\n")
