"""Writes answers.jsonl: questions of the quickstart, half with their answer and half with that of another question."""

import json
from pathlib import Path

HERE = Path(__file__).parent
NUMBER = 240

lines = (HERE.parent / "quickstart/data/train.jsonl").read_text().splitlines()
chats = [chat for chat in (json.loads(line)["messages"] for line in lines) if len(chat) == 2][:NUMBER]
with open(HERE / "answers.jsonl", "w") as file:
    for number, (question, answer) in enumerate(chats):
        other = chats[(number + 7) % len(chats)][1]
        good = number % 2 == 0
        file.write(json.dumps({"messages": [question, answer if good else other], "label": good}) + "\n")
