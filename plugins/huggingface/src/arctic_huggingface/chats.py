"""Rows of many shapes as chats: a list of messages, each with a role and content, in their original order.

The shapes that are known without being asked: ``messages`` (role, content), ShareGPT's ``conversations`` (from, value),
Alpaca's instruction, input and output, and pairs such as prompt and completion or question and answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from arctic_training.data import select
from arctic_training.errors import DataError

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant", "ai": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
"""What data sets call the speakers, and the role that it means."""
CALLS = ("function_call", "tool_call")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
SYSTEM_COLUMNS = ("system", "system_prompt")
PAIRS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("instruction", ("input", "context"), ("output", "response")),
    ("prompt", (), ("completion", "response")),
    ("question", (), ("answer",)),
    ("query", (), ("response", "answer")),
    ("problem", (), ("solution",)),
)
"""Columns of the request, of what may be added to it, and of the answer."""


class NoChat(Exception):
    """Why a row is no chat; ``ChatRows`` knows the row and turns this into a ``DataError``."""


class ChatRows(Sequence[dict[str, Any]]):
    """Chats made of rows when they are asked for, each ``{"messages": [...]}``, with ``tools`` where the row has them.

    Args:
        rows: what was loaded.
        role_mapping: role -> ``column``, ``column.key`` or ``column.field.value``; empty for the shapes that are known.
        content_key: the field of a message that holds its text; None for the usual ones.
        source: what the rows come from, for messages.
        call_format: whether calls of functions become ``tool_calls``, which the chat template renders, or stay text.
        numbers: the number that each row had when it was loaded.
    """

    def __init__(
        self,
        rows: Any,
        role_mapping: Mapping[str, str],
        content_key: str | None,
        source: str,
        *,
        tool_calls: bool = True,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.rows = rows
        self.role_mapping = role_mapping
        self.content_key = content_key
        self.source = source
        self.tool_calls = tool_calls
        self.numbers = range(len(rows)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._chat(self.rows[index], index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, row in enumerate(self.rows):
            yield self._chat(row, index)

    def where(self, index: int) -> str:
        """The place of a row, for messages: file and line, or the number it had when it was loaded, from 0."""
        if hasattr(self.rows, "where"):
            return self.rows.where(index)
        return f"{self.source}, row {self.numbers[index]}"

    def select(self, numbers: Iterable[int]) -> ChatRows:
        """The chats of these numbers, in their order."""
        numbers = list(numbers)
        return ChatRows(
            select(self.rows, numbers),
            self.role_mapping,
            self.content_key,
            self.source,
            tool_calls=self.tool_calls,
            numbers=[self.numbers[number] for number in numbers],
        )

    def _chat(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        try:
            messages = self._messages(row)
            chat = {"messages": [message for message in messages if message is not None]}
            return chat | ({"tools": tools} if (tools := _tools(row)) else {})
        except NoChat as reason:
            raise DataError(
                f"{reason}; the row has the columns {', '.join(row)}",
                where=self.where(index),
                remedy="give the source a role_mapping, such as {user: COLUMN, assistant: COLUMN} or "
                "{user: COLUMN.FIELD.VALUE, ...}",
            ) from None

    def _messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.role_mapping:
            return self._mapped(row)
        for column in CHAT_COLUMNS:
            if isinstance(row.get(column), Sequence) and not isinstance(row[column], str):
                return [*_system(row, row[column]), *self._listed(row[column], column, {})]
        for request, additions, answers in PAIRS:
            answer = next((name for name in answers if row.get(name) is not None), None)
            if row.get(request) is not None and answer:
                return self._pair(row, request, additions, answer)
        raise NoChat("holds none of the chats that are known")

    def _mapped(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Messages in the order of the mapping, those of one list in the order of the list."""
        messages: list[dict[str, Any]] = []
        lists: dict[str, dict[str, str]] = {}
        for role, path in self.role_mapping.items():
            column, *rest = [path] if path in row else path.split(".")
            if column not in row:
                raise NoChat(f"has no column {column!r}, which role_mapping names for {role!r}")
            if len(rest) == 2:
                lists.setdefault(path.rpartition(".")[0], {})[rest[1]] = role
        done = set()
        for role, path in self.role_mapping.items():
            column, *rest = [path] if path in row else path.split(".")
            field = path.rpartition(".")[0]
            if len(rest) == 2 and field not in done:
                done.add(field)
                messages += self._listed(row[column], column, lists[field], role_key=rest[0])
            elif len(rest) < 2:
                value = row[column]
                for key in rest:
                    value = value.get(key) if isinstance(value, Mapping) else None
                if not value and role in ("system", "developer"):
                    continue
                if not isinstance(value, str):
                    raise NoChat(f"holds {_kind(value)} in {path!r}, which role_mapping names for {role!r}, not text")
                messages.append({"role": role, "content": value})
        return messages

    def _listed(
        self, items: Any, column: str, roles: Mapping[str, str], role_key: str | None = None
    ) -> list[dict[str, Any]]:
        if not isinstance(items, Sequence) or isinstance(items, str) or not items:
            raise NoChat(f"holds {_kind(items) if items else 'nothing'} in {column!r}, not a list of messages")
        return [self._message(item, f"{column}[{number}]", roles, role_key) for number, item in enumerate(items)]

    def _message(self, item: Any, place: str, roles: Mapping[str, str], role_key: str | None) -> dict[str, Any]:
        if not isinstance(item, Mapping):
            raise NoChat(f"holds {_kind(item)} in {place}, not a message")
        role_key = role_key or next((key for key in ROLE_KEYS if item.get(key) is not None), None)
        if role_key is None or item.get(role_key) is None:
            raise NoChat(f"does not say whose message {place} is: its fields are {', '.join(item)}")
        content_key = self.content_key or next((key for key in CONTENT_KEYS if key in item), None)
        # Columnar files fill in the fields that other messages have.
        rest = {key: value for key, value in item.items() if key not in (role_key, content_key) and value is not None}
        if content_key is None and not rest.get("tool_calls"):
            raise NoChat(f"has no text in {place}: its fields are {', '.join(item)}")
        if self.content_key and self.content_key not in item:
            raise NoChat(
                f"has no {self.content_key!r} in {place}, which content_key names: its fields are {', '.join(item)}"
            )
        speaker, content = item[role_key], item.get(content_key) if content_key else None
        if speaker in CALLS and speaker not in roles:
            return self._call(content)
        role = roles.get(speaker) or ROLES.get(str(speaker).lower())
        if role is None:
            raise NoChat(f"has the unknown role {speaker!r} in {place}")
        if content is None and not rest.get("tool_calls"):
            raise NoChat(f"has no text in {place}")
        return {"role": role, "content": "" if content is None else content, **rest}

    def _call(self, content: Any) -> dict[str, Any]:
        """A call of a function, written as JSON; text that is no call stays what the assistant said."""
        if not self.tool_calls:
            return {"role": "assistant", "content": content}
        try:
            calls = json.loads(content)
        except (TypeError, ValueError):
            return {"role": "assistant", "content": content}
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, dict) and "name" in call for call in calls):
            return {"role": "assistant", "content": content}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"arguments": {}, **call}} for call in calls],
        }

    def _pair(
        self, row: Mapping[str, Any], request: str, additions: Sequence[str], answer: str
    ) -> list[dict[str, Any]]:
        asked, answered = row[request], row[answer]
        if isinstance(asked, list) and isinstance(answered, list):  # both sides given as messages
            return [*self._listed(asked, request, {}), *self._listed(answered, answer, {})]
        for name, value in ((request, asked), (answer, answered)):
            if not isinstance(value, str):
                raise NoChat(f"holds {_kind(value)} in {name!r}, not text")
        added = next((row[name] for name in additions if isinstance(row.get(name), str) and row[name].strip()), "")
        earlier = [
            {"role": role, "content": text}
            for turn in row.get("history") or ()
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [
            *_system(row, ()),
            *earlier,
            {"role": "user", "content": f"{asked}\n\n{added}" if added else asked},
            {"role": "assistant", "content": answered},
        ]


def _system(row: Mapping[str, Any], messages: Sequence[Any]) -> list[dict[str, Any]]:
    """The system message of a column of its own, unless the chat opens with one."""
    first = messages[0] if messages and isinstance(messages[0], Mapping) else {}
    if any(first.get(key) in ("system", "developer") for key in ROLE_KEYS):
        return []
    text = next((row[name] for name in SYSTEM_COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
    return [{"role": "system", "content": text}] if text else []


def _tools(row: Mapping[str, Any]) -> Any:
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError:
            raise NoChat("holds text in 'tools' that is not JSON") from None
    return tools or None


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a value of type {type(value).__name__}"
