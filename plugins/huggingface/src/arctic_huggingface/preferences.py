"""Rows for other objectives than learning chats: a better and a worse answer, one answer with a label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arctic_huggingface.chat.messages import REASONING_KEYS
from arctic_huggingface.chats import (
    LISTS,
    PAIRS,
    ChatReader,
    answer_messages,
    request_messages,
    with_columns,
)
from arctic_huggingface.faults import (
    EMPTY_ANSWER,
    EQUAL_ANSWERS,
    MISSING_COLUMN,
    MISSING_TEXT,
    NO_ANSWER,
    OTHER_PROMPT,
    WRONG_TYPE,
    Fault,
)
from arctic_huggingface.messages import Message, MessageReader, system_message
from arctic_training.wording import found

PREFERENCE_COLUMNS = ("prompt", "chosen", "rejected", "system", "tools", "margin")
PREFERENCE_REMEDY = "name the columns in column_mapping, such as {prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}"
REQUESTS = sorted(PAIRS, key=lambda pair: pair.request != "prompt")
"""Columns of a request, the one first that is meant for this."""
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class PreferenceReader:
    """Makes ``{"chosen": [...], "rejected": [...]}`` of a row: two whole chats, whose prompt is the same in both.

    ``tools`` and ``margin`` are there where the row has them. The answers are text, a message, or a list of messages;
    such a list may hold the whole chat, and then needs no prompt beside it.

    Args:
        messages: reads the messages.
        column_mapping: prompt, chosen, rejected, system, tools or margin -> the column that holds it.
    """

    def __init__(self, messages: MessageReader, column_mapping: Mapping[str, str] | None = None) -> None:
        self.messages = messages
        self.column_mapping = column_mapping or {}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The pair of a row.

        Raises:
            Fault: it holds none, or its answers are the same or belong to different prompts.
        """
        try:
            named = self._named(row)
            chosen, rejected = self._chat(named, "chosen"), self._chat(named, "rejected")
            _check_pair(chosen, rejected)
            pair = self._with_tools({"chosen": chosen, "rejected": rejected}, named)
            return pair if named.get("margin") is None else pair | {"margin": named["margin"]}
        except Fault as fault:
            raise with_columns(fault, row, PREFERENCE_REMEDY) from None

    def chosen_chat(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The chat of the prompt and the chosen answer, ``{"messages": [...]}``.

        Raises:
            Fault: the row holds none.
        """
        try:
            named = self._named(row)
            return self._with_tools({"messages": self._chat(named, "chosen")}, named)
        except Fault as fault:
            raise with_columns(fault, row, PREFERENCE_REMEDY) from None

    def _named(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with its columns called as they are here."""
        for name, column in self.column_mapping.items():
            if column not in row:
                raise Fault(f"has no column {column!r}, which column_mapping names for {name}", MISSING_COLUMN)
        return {**row, **{name: row[column] for name, column in self.column_mapping.items()}}

    def _with_tools(self, result: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
        return result | {"tools": tools} if (tools := self.messages.tools(row)) else result

    def _chat(self, row: Mapping[str, Any], column: str) -> list[Message]:
        """The whole chat of an answer."""
        if column not in row:
            raise Fault(f"has no column {column!r}", MISSING_COLUMN)
        if row[column] is None:
            raise Fault(f"holds nothing in {column!r}", MISSING_TEXT, "correct the row")
        messages = answer_messages(row[column], column, self.messages)
        if messages[0]["role"] == "assistant":
            messages = [*self._prompt(row, column), *messages]
        else:
            messages = [*system_message(row, messages), *messages]
        if messages[-1]["role"] != "assistant":
            raise Fault(f"does not end with an answer of the assistant in {column!r}", NO_ANSWER, "correct the row")
        return messages

    def _prompt(self, row: Mapping[str, Any], column: str) -> list[Message]:
        """The messages before an answer that stands for itself."""
        if place := next((pair for pair in REQUESTS if row.get(pair.request)), None):
            prompt = request_messages(row, place, self.messages)
        elif listed := next((name for _, name in LISTS if row.get(name)), None):
            prompt = [*system_message(row, row[listed]), *self.messages.all_of(row[listed], listed)]
        else:
            raise Fault(f"holds an answer in {column!r}, and no prompt that it belongs to", MISSING_COLUMN)
        if prompt[-1]["role"] == "assistant":
            raise Fault("holds a prompt that ends with an answer", OTHER_PROMPT, "correct the row")
        return prompt


class LabelledReader:
    """Makes ``{"messages": [...], "label": ...}`` of a row: a chat, and whether its last answer is a good one.

    Args:
        chats: reads the chat.
        label_column: the column of the label: true or false, 1 or 0, or that as text.
    """

    def __init__(self, chats: ChatReader, label_column: str = "label") -> None:
        self.chats = chats
        self.label_column = label_column

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The labelled chat of a row.

        Raises:
            Fault: it holds no chat that ends with an answer, or no label.
        """
        chat = self.chats(row)
        try:
            return {**chat, "label": self._label(row, chat["messages"])}
        except Fault as fault:
            raise with_columns(fault, row, "correct the row, or name its label_column") from None

    def _label(self, row: Mapping[str, Any], messages: list[Message]) -> bool:
        if self.label_column not in row:
            raise Fault(f"has no column {self.label_column!r}", MISSING_COLUMN)
        label = TRUTHS.get(str(row[self.label_column]).strip().lower())
        if label is None:
            raise Fault(
                f"holds {found(row[self.label_column])} in {self.label_column!r}, not true or false", WRONG_TYPE
            )
        if messages[-1]["role"] != "assistant":
            raise Fault("does not end with an answer of the assistant", NO_ANSWER)
        if _is_empty(messages[-1]):
            raise Fault("ends with an empty answer", EMPTY_ANSWER, "remove the row")
        return label


def _check_pair(chosen: list[Message], rejected: list[Message]) -> None:
    """Refuse a pair that does not differ, or differs in more than what the assistant answered."""
    if chosen == rejected:
        raise Fault("holds the same answer twice, as chosen and as rejected", EQUAL_ANSWERS, "remove the row")
    shared = next((n for n, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other), None)
    if shared is None:
        raise Fault("holds a chat that goes on where the other ends", OTHER_PROMPT, "correct the row")
    roles = {chosen[shared]["role"], rejected[shared]["role"]}
    if roles != {"assistant"}:
        raise Fault(
            f"holds two chats of different prompts: they differ in message {shared}", OTHER_PROMPT, "correct the row"
        )
    for column, chat in (("chosen", chosen), ("rejected", rejected)):
        if any(_is_empty(message) for message in chat[shared:]):
            raise Fault(f"holds an empty answer in {column!r}", EMPTY_ANSWER, "remove the row")


def shared_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """The number of messages with which both chats of a pair begin: their prompt."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    return next(number for number, (one, other) in pairs if one != other)


def _is_empty(message: Message) -> bool:
    says = [message["content"], *(message.get(name) for name in ("tool_calls", *REASONING_KEYS))]
    return message["role"] == "assistant" and not any(part.strip() if isinstance(part, str) else part for part in says)
