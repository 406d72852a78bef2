"""What a chat has to look like before any template sees it: known roles, in an order that has a meaning, with text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from arctic_huggingface.chat.refusals import NO_CONTENT, ROLES_OUT_OF_ORDER, UnusableChat
from arctic_huggingface.faults import EMPTY_CHAT, MISSING_COLUMN, NOTHING_TO_TRAIN_ON, UNKNOWN_ROLE, WRONG_TYPE

Message = dict[str, Any]

OPENING_ROLES = ("system", "developer")
ROLES = (*OPENING_ROLES, "user", "assistant", "tool")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message holds what the assistant thought before it answered; templates read the first two."""

_MAY_FOLLOW = {
    None: (*OPENING_ROLES, "user"),
    "system": ("developer", "user"),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


class Chat(NamedTuple):
    """A chat whose messages are in order.

    Attributes:
        messages: as the template gets them.
        tools: functions that the assistant may call, or None.
        answers: numbers of the assistant's messages; at least one.
        untrained: numbers of those that are not to be trained.
        plain: whether there is nothing but roles and text.
    """

    messages: list[Message]
    tools: list[Mapping[str, Any]] | None
    answers: list[int]
    untrained: frozenset[int] = frozenset()
    plain: bool = True

    def until(self, number: int) -> Chat:
        """The chat up to and including this message."""
        answers = [answer for answer in self.answers if answer <= number]
        return self._replace(messages=self.messages[: number + 1], answers=answers)


def checked_chat(row: Any) -> Chat:
    """The chat of a row, without the empty keys that columnar files add to messages.

    A chat may open with a system and a developer message; then user and assistant take turns, and messages with tool
    results may stand between an assistant message and the next.

    Args:
        row: a mapping with ``messages`` and perhaps ``tools``. ``train: false`` on a message of the assistant leaves it
            out of training; templates do not see that key.

    Raises:
        UnusableChat: a message is not a mapping, has no known role or no text, or stands where it has no meaning, or
            the chat holds no assistant message.
    """
    if not isinstance(row, Mapping):
        raise UnusableChat(f"the row is a {type(row).__name__}, not a mapping with messages", WRONG_TYPE)
    given, tools = row.get("messages"), row.get("tools")
    if given is None and "messages" not in row:
        raise UnusableChat(
            f"the row has no column `messages`; it has {', '.join(map(str, row)) or 'none'}",
            MISSING_COLUMN,
            "name a source that makes chats of such rows, or remove the row",
        )
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise UnusableChat(
            f"messages is a {type(given).__name__}, not a list of messages",
            WRONG_TYPE,
            "write a list of {role: ..., content: ...}",
        )
    if not given:
        raise UnusableChat("the chat has no messages", EMPTY_CHAT, "remove the row")
    if tools is None and type(given) is list and all(_is_plain(message) for message in given):
        return Chat(given, None, _answers(given))
    _check_tools(tools)
    messages = [_checked_message(number, message) for number, message in enumerate(given)]
    answers = _answers(messages)
    untrained = frozenset(number for number, message in enumerate(messages) if not message.pop("train", True))
    return Chat(messages, tools, answers, untrained, plain=False)


def reasoning_of(message: Message) -> str:
    """What the assistant thought, where the message holds it apart from its content."""
    return next((message[name] for name in REASONING_KEYS if name in message), "")


def _is_plain(message: Any) -> bool:
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and type(message.get("role")) is str
    )


def _answers(messages: list[Message]) -> list[int]:
    """The numbers of the assistant's messages, after checking the order of roles."""
    answers = []
    previous = None
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in _MAY_FOLLOW[previous]:
            _check_role(number, role)
            place = f"after {previous}" if previous else "at the beginning"
            raise UnusableChat(
                f"message {number} has the role {role} {place}, where {_either(_MAY_FOLLOW[previous])} is expected",
                ROLES_OUT_OF_ORDER,
                "merge or reorder the messages of this row, or remove it",
            )
        if role == "assistant":
            answers.append(number)
        previous = role
    if not answers:
        raise UnusableChat("the chat has no assistant message to train on", NOTHING_TO_TRAIN_ON, "remove the row")
    return answers


def _check_role(number: int, role: Any) -> None:
    if role not in ROLES:
        raise UnusableChat(
            f"message {number} has the role {role!r}, not {_either(ROLES)}",
            UNKNOWN_ROLE,
            "map the roles of the source with its role_mapping",
        )


def _checked_message(number: int, message: Any) -> Message:
    if not isinstance(message, Mapping):
        kind = type(message).__name__
        raise UnusableChat(f"message {number} is a {kind}, not a mapping with role and content", WRONG_TYPE)
    present = {name: value for name, value in message.items() if value is not None}
    role = present.get("role")
    _check_role(number, role)
    _check_types(number, present)
    if "content" not in present and not (role == "assistant" and present.get("tool_calls")):
        raise UnusableChat(f"message {number} ({role}) has no content", NO_CONTENT)
    if reasoning := reasoning_of(present):
        # Older versions of transformers hand only the first name to the template.
        present = {"thinking": reasoning, **present, "reasoning_content": reasoning}
    return present


def _check_types(number: int, message: Message) -> None:
    role = message["role"]

    def wrong(name: str, expected: str) -> UnusableChat:
        kind = type(message[name]).__name__
        return UnusableChat(f"the {name} of message {number} ({role}) is a {kind}, not {expected}", WRONG_TYPE)

    for name in ("content", *REASONING_KEYS):
        if not isinstance(message.get(name, ""), str):
            raise wrong(name, "text")
    if len({message[name] for name in REASONING_KEYS if name in message}) > 1:
        raise UnusableChat(f"message {number} ({role}) holds reasoning twice, and it differs", WRONG_TYPE, "keep one")
    if "train" in message and type(message["train"]) is not bool:
        raise wrong("train", "true or false")
    if "train" in message and role != "assistant":
        raise UnusableChat(
            f"message {number} ({role}) has the key train, which only messages of the assistant may have", WRONG_TYPE
        )
    calls = message.get("tool_calls", [])
    if not isinstance(calls, Sequence) or isinstance(calls, (str, bytes)) or not all(map(_is_call, calls)):
        raise UnusableChat(
            f"the tool_calls of message {number} ({role}) are not a list of calls",
            WRONG_TYPE,
            "write each as {type: function, function: {name: ..., arguments: {...}}}",
        )


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return (
        isinstance(function, Mapping)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments", ""), (str, Mapping, type(None)))
    )


def _check_tools(tools: Any) -> None:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise UnusableChat(
            f"tools is a {type(tools).__name__}, not a list of mappings", WRONG_TYPE, "write each tool as a JSON schema"
        )


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
