"""Messages as data sets write them, as a role and its text: names of speakers, fields, calls of functions, tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from arctic_huggingface.faults import (
    EMPTY_CHAT,
    MALFORMED_JSON,
    MISSING_TEXT,
    UNKNOWN_ROLE,
    UNWRITTEN_CALL,
    WRONG_TYPE,
    Fault,
    check_unicode,
    named_type,
)

ROLES = {
    "system": "system", "developer": "developer",
    "user": "user", "human": "user", "prompter": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bing": "assistant",
    "model": "assistant", "bot": "assistant", "ai": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
"""What data sets call the speakers, and the role that it means."""
CALLS = ("function_call", "tool_call")
"""Speakers whose text is a call of a function."""
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")
SYSTEM_COLUMNS = ("system", "system_prompt")

Message = dict[str, Any]


class MessageReader:
    """Reads messages: each becomes ``{"role": ..., "content": ...}`` with the fields that it has besides.

    Args:
        content_key: the field that holds the text; None for the usual ones.
        tool_calls: whether the chat template writes ``tool_calls``. Where it does not, a call that is given as text
            stays text, and any other is refused, since the template would leave it out without a word.
        columnar: whether the rows are those of a table, which holds an empty value for each field that some row has.
    """

    def __init__(self, content_key: str | None = None, *, tool_calls: bool = True, columnar: bool = False) -> None:
        self.content_key = content_key
        self.tool_calls = tool_calls
        self.columnar = columnar

    def all_of(
        self, items: Any, column: str, roles: Mapping[str, str] | None = None, role_key: str | None = None
    ) -> list[Message]:
        """The messages of a list, or of text that is a list in JSON.

        Args:
            items: the value of a column.
            column: its name, for messages.
            roles: what the speakers are called, where that is not usual.
            role_key: the field that names the speaker; None for the usual ones.

        Raises:
            Fault: it is no list of messages, or one of them cannot be read.
        """
        items = parsed_json(items, repr(column))
        if not isinstance(items, Sequence) or isinstance(items, str):
            category = EMPTY_CHAT if items is None else WRONG_TYPE
            raise Fault(f"holds {named_type(items)} in {column!r}, not a list of messages", category)
        if not items:
            raise Fault(f"holds no messages in {column!r}", EMPTY_CHAT, "remove the row")
        if roles or role_key or self.content_key:
            return [self.one(item, f"{column}[{number}]", roles or {}, role_key) for number, item in enumerate(items)]
        return [_plain(item) or self.one(item, f"{column}[{number}]", {}) for number, item in enumerate(items)]

    def one(self, item: Any, place: str, roles: Mapping[str, str], role_key: str | None = None) -> Message:
        """One message; arguments as of ``all_of``, with the place instead of the column."""
        if not isinstance(item, Mapping):
            raise Fault(f"holds {named_type(item)} in {place}, not a message", WRONG_TYPE)
        role_key = role_key or next((key for key in ROLE_KEYS if item.get(key) is not None), None)
        if role_key is None or item.get(role_key) is None:
            raise Fault(f"does not say whose message {place} is: its fields are {', '.join(item)}", UNKNOWN_ROLE)
        speaker = str(item[role_key])
        content_key = self.content_key or next((key for key in CONTENT_KEYS if key in item), None)
        # Tables fill in the fields that other messages have.
        own = (role_key, content_key, "role", "content")
        rest = {key: value for key, value in item.items() if key not in own and value is not None}
        if self.content_key and self.content_key not in item:
            raise Fault(
                f"has no {self.content_key!r} in {place}, which content_key names: its fields are {', '.join(item)}",
                MISSING_TEXT,
            )
        content = item.get(content_key) if content_key else None
        if speaker in CALLS and speaker not in roles:
            return self._call(content, place)
        role = roles.get(speaker) or ROLES.get(speaker.lower())
        if role is None:
            raise Fault(
                f"has the unknown role {speaker!r} in {place}",
                UNKNOWN_ROLE,
                "name it in role_mapping, as in {user: COLUMN.FIELD.VALUE}, or correct the row",
            )
        if "tool_calls" in rest or "function_call" in rest:
            rest |= self._calls(rest, place)
        if content is None and not rest.get("tool_calls"):
            raise Fault(f"has no text in {place}: its fields are {', '.join(item)}", MISSING_TEXT, "correct the row")
        return {"role": role, "content": "" if content is None else _text(content, place), **rest}

    def tools(self, row: Mapping[str, Any]) -> list[Any]:
        """The functions that a row offers in ``tools``, given as a list or as text.

        Raises:
            Fault: they are neither.
        """
        tools = row.get("tools")
        if not tools or (tools := parsed_json(tools, "'tools'")) is None:
            return []
        if not isinstance(tools, Sequence) or not all(isinstance(tool, Mapping) for tool in tools):
            raise Fault(f"holds {named_type(tools)} in 'tools', not a list of functions", WRONG_TYPE, "correct the row")
        return self._without_fillers(tools)

    def _call(self, content: Any, place: str) -> Message:
        """A call of a function, written as JSON; text that is no call stays what the assistant said."""
        said = {"role": "assistant", "content": _text(content, place)}
        if not self.tool_calls:
            return said
        try:
            calls = json.loads(content)
        except (TypeError, ValueError, RecursionError):
            return said
        calls = calls if isinstance(calls, list) else [calls]
        if not all(isinstance(call, dict) and "name" in call for call in calls):
            return said
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [_as_call({**call, "arguments": call.get("arguments", {})}) for call in calls],
        }

    def _calls(self, rest: Message, place: str) -> Message:
        """The calls among the fields of a message, each as ``{"type": "function", "function": {...}}``."""
        calls = rest.get("tool_calls")
        if not calls and rest.get("function_call"):  # one call, as they were written before there were several
            calls = [rest.pop("function_call")]
        calls = parsed_json(calls or None, f"{place}.tool_calls")
        rest.pop("tool_calls", None)
        if calls is None:
            return {}
        if not isinstance(calls, Sequence) or not all(isinstance(call, Mapping) for call in calls):
            raise Fault(f"holds {named_type(calls)} in {place}.tool_calls, not a list of calls", WRONG_TYPE)
        if not self.tool_calls:
            raise Fault(
                f"calls a function in {place}, and the chat template writes no tool_calls",
                UNWRITTEN_CALL,
                "give a template that does (tokenizer.chat_template)",
            )
        return {"tool_calls": [_with_parsed_arguments(_as_call(call), place) for call in self._without_fillers(calls)]}

    def _without_fillers(self, value: Any) -> Any:
        if not self.columnar:
            return value
        if isinstance(value, Mapping):
            return {key: self._without_fillers(inner) for key, inner in value.items() if inner is not None}
        return [self._without_fillers(inner) for inner in value] if isinstance(value, list) else value


def system_message(row: Mapping[str, Any], messages: Any) -> list[Message]:
    """The system message of a column of its own, unless the messages open with one."""
    first = messages[0] if isinstance(messages, Sequence) and messages else None
    if isinstance(first, Mapping) and any(first.get(key) in ("system", "developer") for key in ROLE_KEYS):
        return []
    text = next((row[name] for name in SYSTEM_COLUMNS if isinstance(row.get(name), str) and row[name].strip()), None)
    return [{"role": "system", "content": text}] if text else []


def parsed_json(value: Any, place: str) -> Any:
    """The value; where it is text, as in a CSV file, what that is in JSON, or None where it is blank.

    Raises:
        Fault: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        raise Fault(f"holds text in {place} that is not JSON", MALFORMED_JSON, "correct the row") from None
    check_unicode(found)
    return found


def _plain(item: Any) -> Message | None:
    """The message, if it is as most are: a role that is known, text, and nothing else."""
    if type(item) is not dict or len(item) != 2:
        return None
    role, content = item.get("role"), item.get("content")
    if type(content) is not str or type(role) is not str or role not in ROLES:
        return None
    return {"role": ROLES[role], "content": content}


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) and content else [content]
    other = next((part for part in parts if not _is_text_part(part)), None)
    if other is None:
        return "".join(part["text"] for part in parts)
    kind = other.get("type") if isinstance(other, Mapping) else None
    found = f"a part of type {kind!r}" if kind else named_type(content)
    raise Fault(f"holds {found} in {place}, not text", WRONG_TYPE, "write what is to be trained on as text")


def _is_text_part(part: Any) -> bool:
    """Whether a part of a message's content is text, as in ``[{"type": "text", "text": ...}]``."""
    return isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def _as_call(call: Mapping[str, Any]) -> Message:
    if isinstance(call.get("function"), Mapping):
        return {"type": "function", **call}
    return {"type": "function", "function": dict(call)}


def _with_parsed_arguments(call: Message, place: str) -> Message:
    """The call with its arguments as an object: templates write them as JSON, and text would be quoted once more."""
    function = call["function"]
    if not isinstance(function.get("name"), str):
        raise Fault(f"calls a function in {place} without its name", WRONG_TYPE, "correct the row")
    arguments = parsed_json(function.get("arguments"), f"the arguments of a call in {place}")
    return {**call, "function": {**function, "arguments": {} if arguments is None else arguments}}
