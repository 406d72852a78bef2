"""What a chat has to look like before any template sees it: known roles, in an order that has a meaning, with text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arctic_sft.refusals import (
    EMPTY_CHAT,
    NO_CONTENT,
    NOTHING_TO_TRAIN_ON,
    ROLES_OUT_OF_ORDER,
    UNKNOWN_ROLE,
    WRONG_TYPE,
    UnusableChat,
)

OPENING_ROLES = ("system", "developer")
ROLES = (*OPENING_ROLES, "user", "assistant", "tool")

_MAY_FOLLOW = {
    None: (*OPENING_ROLES, "user"),
    "system": ("developer", "user"),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def checked_messages(chat: Any) -> list[dict[str, Any]]:
    """The messages of a chat as dicts, without the empty keys that columnar files add.

    A chat may open with a system and a developer message; then user and assistant take turns, and messages with tool
    results may stand between an assistant message and the next.

    Raises:
        UnusableChat: a message is not a mapping, has no known role or no text, or stands where it has no meaning, or
            the chat holds no assistant message.
    """
    if not isinstance(chat, Sequence) or isinstance(chat, (str, bytes)):
        raise UnusableChat(
            f"messages is a {type(chat).__name__}, not a list of messages",
            WRONG_TYPE,
            "write a list of {role: ..., content: ...}",
        )
    if not chat:
        raise UnusableChat("the chat has no messages", EMPTY_CHAT, "remove the row")
    messages = [_checked_message(number, message) for number, message in enumerate(chat)]
    previous = None
    for number, message in enumerate(messages):
        role = message["role"]
        if role not in _MAY_FOLLOW[previous]:
            place = f"after {previous}" if previous else "at the beginning"
            raise UnusableChat(
                f"message {number} has the role {role} {place}, where {_either(_MAY_FOLLOW[previous])} is expected",
                ROLES_OUT_OF_ORDER,
                "merge or reorder the messages of this row, or remove it",
            )
        previous = role
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableChat("the chat has no assistant message to train on", NOTHING_TO_TRAIN_ON, "remove the row")
    return messages


def _checked_message(number: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UnusableChat(
            f"message {number} is a {type(message).__name__}, not a mapping with role and content", WRONG_TYPE
        )
    present = {name: value for name, value in message.items() if value is not None}
    role = present.get("role")
    if role not in ROLES:
        raise UnusableChat(
            f"message {number} has the role {role!r}, not {_either(ROLES)}",
            UNKNOWN_ROLE,
            "map the roles of the source with its role_mapping",
        )
    if "content" not in present and not (role == "assistant" and present.get("tool_calls")):
        raise UnusableChat(f"message {number} ({role}) has no content", NO_CONTENT)
    if not isinstance(present.get("content", ""), str):
        raise UnusableChat(
            f"the content of message {number} ({role}) is a {type(present['content']).__name__}, not text", WRONG_TYPE
        )
    return present


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
