"""Rows of many formats as chats: a list of messages, each with a role and content, in their original order.

The formats that are known by their columns: ``messages`` (role, content), ShareGPT's ``conversations`` (from, value),
Alpaca's instruction, input and output, and pairs such as prompt and completion or question and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from arctic_huggingface.faults import (
    EMPTY_CHAT,
    MISSING_COLUMN,
    MISSING_TEXT,
    UNCLEAR_FORMAT,
    UNKNOWN_FORMAT,
    WRONG_TYPE,
    Fault,
    named_type,
)
from arctic_huggingface.messages import Message, MessageReader, system_message

ChatFormat = Literal["messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "preference"]
CORRECT = "correct the row, or remove it"  # where its columns are the right ones
MAPPING_REMEDY = (
    "give the source a role_mapping, such as {user: COLUMN, assistant: COLUMN} or {user: COLUMN.FIELD.VALUE, ...}"
)
PAIR_NOT_CHAT = (
    "set `format: preference` on the source to train on the chosen one, or use the source huggingface_preference"
)
PAIR_NOT_LABELLED = "give rows of one answer with its label, or train on pairs with type: dpo or type: reward"
TEXT_REMEDY = (
    "to train on all of the text, use a trainer of plain text (type: causal) instead of one of chats; "
    "or give the source a role_mapping from user and assistant to columns"
)


class Pair(NamedTuple):
    """Columns of a request, of what may be added to it, and of the answer."""

    format: str
    request: str
    additions: tuple[str, ...]
    answers: tuple[str, ...]


PAIRS = (
    Pair("alpaca", "instruction", ("input", "context"), ("output", "response")),
    Pair("prompt_completion", "prompt", (), ("completion", "response")),
    Pair("question_answer", "question", (), ("answer",)),
    Pair("question_answer", "query", (), ("response", "answer")),
    Pair("question_answer", "problem", (), ("solution",)),
)
LISTS = (("messages", "messages"), ("sharegpt", "conversations"), ("sharegpt", "conversation"))
"""Formats, and the columns that hold their messages; what the messages' fields are called is known by itself."""


class ChatReader:
    """Makes a chat of a row: ``{"messages": [...]}``, with ``tools`` where the row has them.

    Args:
        messages: reads the messages.
        role_mapping: role -> ``column``, ``column.key`` or ``column.field.value``; empty for the known formats.
        format: the format of all rows; None to know that of each row by its columns.
        labelled: whether the rows' label is read by somebody else.
    """

    def __init__(
        self,
        messages: MessageReader,
        role_mapping: Mapping[str, str] | None = None,
        format: ChatFormat | None = None,
        *,
        labelled: bool = False,
    ) -> None:
        self.messages = messages
        self.role_mapping = role_mapping or {}
        self.format = format
        self.labelled = labelled

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The chat of a row.

        Raises:
            Fault: it holds none.
        """
        try:
            chat: dict[str, Any] = {"messages": self._messages(row)}
            return chat | {"tools": tools} if (tools := self.messages.tools(row)) else chat
        except Fault as fault:
            raise with_columns(fault, row) from None

    def _messages(self, row: Mapping[str, Any]) -> list[Message]:
        if self.role_mapping:
            return self._mapped(row)
        if self.format is None:
            self._refuse_answers_to_choose_from(row)
        for form, column in LISTS:
            if self.format in (None, form) and is_list(row.get(column)):
                return [*system_message(row, row[column]), *self.messages.all_of(row[column], column)]
        pairs = [pair for pair in PAIRS if self.format in (None, pair.format)]
        for pair in pairs:
            answer = next((name for name in pair.answers if row.get(name) is not None), None)
            if row.get(pair.request) is not None and answer:
                asked = request_messages(row, pair, self.messages)
                return [*asked, *answer_messages(row[answer], answer, self.messages)]
        raise self._unknown(row, pairs)

    def _unknown(self, row: Mapping[str, Any], pairs: Sequence[Pair]) -> Fault:
        """Why a row is no chat: what a column of a chat holds, or that there is none."""
        for form, column in LISTS:
            if self.format in (None, form) and column in row:
                if row[column] is None:
                    return Fault(f"holds no messages in {column!r}", EMPTY_CHAT, "remove the row")
                return Fault(f"holds {named_type(row[column])} in {column!r}, not a list of messages", WRONG_TYPE)
        for pair in pairs:
            answer = next((name for name in pair.answers if name in row), None)
            if pair.request in row and answer:
                empty = answer if row[answer] is None else pair.request
                return Fault(f"holds nothing in {empty!r}", MISSING_TEXT, "correct the row")
        if self.format is None and isinstance(row.get("text"), str):
            return Fault("holds plain text, and none of the chats that are known", UNKNOWN_FORMAT, TEXT_REMEDY)
        if self.format is None:
            return Fault("holds none of the chats that are known", UNKNOWN_FORMAT, MAPPING_REMEDY)
        columns = [column for form, column in LISTS if form == self.format] or [
            f"{pair.request} and {pair.answers[0]}" for pair in pairs
        ]
        return Fault(
            f"has no {' or '.join(columns)}, which format: {self.format} reads",
            MISSING_COLUMN,
            f"correct the format, or {MAPPING_REMEDY}",
        )

    def _refuse_answers_to_choose_from(self, row: Mapping[str, Any]) -> None:
        """Rows that say which answer is the worse, or whether it is good, are made for another objective."""
        if row.get("chosen") is not None and row.get("rejected") is not None and not _is_answered(row.get("messages")):
            remedy = PAIR_NOT_LABELLED if self.labelled else PAIR_NOT_CHAT
            raise Fault("holds two answers, chosen and rejected", UNCLEAR_FORMAT, remedy)
        if isinstance(row.get("label"), bool) and not self.labelled:
            raise Fault(
                "holds an answer whose label says whether it is a good one",
                UNCLEAR_FORMAT,
                "name the source's format, such as `format: messages`, to train on all answers, good and bad, "
                "or use the source huggingface_labelled",
            )

    def _mapped(self, row: Mapping[str, Any]) -> list[Message]:
        """Messages in the order of the mapping, those of one list in the order of the list."""
        messages: list[Message] = []
        lists: dict[str, dict[str, str]] = {}
        for role, path in self.role_mapping.items():
            column, *rest = [path] if path in row else path.split(".")
            if column not in row:
                raise Fault(
                    f"has no column {column!r}, which role_mapping names for {role!r}",
                    MISSING_COLUMN,
                    "correct role_mapping",
                )
            if len(rest) == 2:
                lists.setdefault(path.rpartition(".")[0], {})[rest[1]] = role
        done = set()
        for role, path in self.role_mapping.items():
            column, *rest = [path] if path in row else path.split(".")
            field = path.rpartition(".")[0]
            if len(rest) == 2 and field not in done:
                done.add(field)
                messages += self.messages.all_of(row[column], column, lists[field], role_key=rest[0])
            elif len(rest) < 2:
                value = row[column]
                for key in rest:
                    value = value.get(key) if isinstance(value, Mapping) else None
                if not value and role in ("system", "developer"):
                    continue
                text = text_of(value, f"{path!r}, which role_mapping names for {role!r}", None)
                messages.append({"role": role, "content": text})
        return messages


def request_messages(row: Mapping[str, Any], pair: Pair, messages: MessageReader) -> list[Message]:
    """The messages of a request: given as such, or system, earlier turns, and what the user asks as text.

    Raises:
        Fault: it is neither messages nor text.
    """
    asked = row[pair.request]
    if isinstance(asked, list):
        return [*system_message(row, asked), *messages.all_of(asked, pair.request)]
    asked = text_of(asked, repr(pair.request))
    added = next((row[name] for name in pair.additions if isinstance(row.get(name), str) and row[name].strip()), "")
    user = {"role": "user", "content": f"{asked}\n\n{added}" if added else asked}
    return [*system_message(row, ()), *_earlier(row.get("history")), user]


def answer_messages(answer: Any, column: str, messages: MessageReader) -> list[Message]:
    """The messages of an answer: given as a list of messages, as one message, or as text.

    Raises:
        Fault: it is none of these.
    """
    if isinstance(answer, list):
        return messages.all_of(answer, column)
    if isinstance(answer, Mapping):
        return [messages.one(answer, column, {})]
    text = text_of(answer, repr(column))
    if not text.strip():
        raise Fault(f"holds an answer without text in {column!r}", MISSING_TEXT, "correct the row")
    return [{"role": "assistant", "content": text}]


def with_columns(fault: Fault, row: Mapping[str, Any], remedy: str = MAPPING_REMEDY) -> Fault:
    """The fault, told with the columns that the row has, and with this remedy where it has none."""
    return Fault(f"{fault.message}; the row has the columns {', '.join(row)}", fault.category, fault.remedy or remedy)


def is_list(value: Any) -> bool:
    """Whether a column holds messages: a list, or a list as text, which CSV files have for one."""
    return isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))


def text_of(value: Any, place: str, remedy: str | None = CORRECT) -> str:
    """The value, which has to be text.

    Args:
        value: what the row holds.
        place: where, for the message.
        remedy: what to do; None to leave that to ``with_columns``, where the recipe may have named a wrong place.

    Raises:
        Fault: it is something else.
    """
    if not isinstance(value, str):
        category = MISSING_TEXT if value is None else WRONG_TYPE
        raise Fault(f"holds {named_type(value)} in {place}, not text", category, remedy)
    return value


def _earlier(history: Any) -> list[Message]:
    """Earlier turns, as Alpaca's ``history`` has them: pairs of what was asked and answered."""
    messages = []
    for turn in history or ():
        if not isinstance(turn, Sequence) or len(turn) != 2:
            raise Fault("holds something else in 'history' than pairs of a request and its answer", WRONG_TYPE, CORRECT)
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return [{**message, "content": text_of(message["content"], "'history'")} for message in messages]


def _is_answered(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"
