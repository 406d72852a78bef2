"""What can be wrong with a row: the words that its faults are counted under, and the fault that waits for its place."""

from __future__ import annotations

import json
from typing import Any

from arctic_training.errors import BadRow

MALFORMED_JSON = "malformed JSON"
MALFORMED_CSV = "malformed CSV"
INVALID_UTF8 = "invalid UTF-8"
INVALID_TEXT = "invalid text"
"""Text with code points that are no characters, such as half a surrogate pair."""
WRONG_TYPE = "wrong type"
MISSING_COLUMN = "missing column"
MISSING_TEXT = "missing text"
UNKNOWN_FORMAT = "unknown format"
UNCLEAR_FORMAT = "format to be named"
UNKNOWN_ROLE = "unknown role"
UNWRITTEN_CALL = "call that the template leaves out"
EMPTY_CHAT = "empty chat"
NO_ANSWER = "no answer at the end"
EMPTY_ANSWER = "empty answer"
EQUAL_ANSWERS = "equal answers"
TOO_LONG = "text longer than max_length"
EQUAL_TEXTS = "negative equal to the positive"
OTHER_PROMPT = "answers of different prompts"
NOTHING_TO_TRAIN_ON = "nothing to train on"
TWO_BOS = "two BOS"
"""Two beginning-of-text tokens in a row."""


class Fault(Exception):
    """What is wrong with a row, raised where its place is not known.

    Args:
        message: what is wrong, in one sentence.
        category: one of the words of this module.
        remedy: what to do about it.
    """

    def __init__(self, message: str, category: str, remedy: str | None = None) -> None:
        super().__init__(message, category, remedy)
        self.message = message
        self.category = category
        self.remedy = remedy

    def at(self, where: str) -> BadRow:
        """The error for the row at this place."""
        return BadRow(self.message, category=self.category, where=where, remedy=self.remedy)


def check_object(row: Any) -> dict[str, Any]:
    """The row, if it is an object.

    Raises:
        Fault: it is something else.
    """
    if not isinstance(row, dict):
        raise Fault(f"a row must be an object with named fields, not {named_type(row)}", WRONG_TYPE, "correct the row")
    return row


def check_unicode(row: Any) -> None:
    """Refuse text that no tokenizer takes: half of a surrogate pair, and what stands for bytes that are no text.

    Args:
        row: any value, in which bytes that are no text were decoded with ``surrogateescape``.

    Raises:
        Fault: there is such text.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            message, remedy = f"the row holds the byte {code - 0xDC00:#04x}, which is not UTF-8", "write it in UTF-8"
        else:
            message = f"the row holds half of a surrogate pair ({code:#06x}), which is no character"
            remedy = "write characters as UTF-8, or as both halves"
        raise Fault(message, INVALID_UTF8, remedy) from None


def named_type(value: Any) -> str:
    """What a value is in the words of JSON, for messages."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    kinds = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return next((word for kind, word in kinds.items() if isinstance(value, kind)), f"a {type(value).__name__}")
