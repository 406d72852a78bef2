"""Renders and encodes chats in batches of 1,000 and does nothing else, for `data_preparation.py`."""

from __future__ import annotations

import json
import sys
import time

BATCH_ROWS = 1000


def main(chats_path: str, model_path: str, folder: str, num_proc: str, max_length: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path, model_max_length=sys.maxsize)
    with open(chats_path, encoding="utf-8") as file:
        chats = [json.loads(line)["messages"] for line in file]
    tokens = 0
    started = time.perf_counter()
    for first in range(0, len(chats), BATCH_ROWS):
        texts = tokenizer.apply_chat_template(chats[first : first + BATCH_ROWS], tokenize=False)
        tokens += sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
