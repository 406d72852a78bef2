"""Checks that what the chat says is in what the template wrote, so that no template changes it without a word.

White space at the ends of a text is nobody's: templates may add it or take it away. So is an empty reasoning block.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arctic_huggingface.chat.messages import OPENING_ROLES, REASONING_KEYS, Message, reasoning_of
from arctic_huggingface.chat.refusals import CONTENT_LOST, UnusableChat
from arctic_huggingface.chat.think import CLOSE

Span = tuple[int, int]

_TAGS = re.compile("(</?think>)")
_EMPTY_BEGINNING = re.compile(r"(?:\s*</?think>)*\s*")
_BETWEEN = {"<think>": re.compile(r"\s*(?:<think>\s*)?"), CLOSE: re.compile(r"\s*</think>\s*")}
_REMEDY = "give a chat template that writes it (tokenizer.chat_template), or take it out of the row"


def find_said(number: int, message: Message, text: str, start: int, stop: int) -> Span:
    """Where an assistant's content stands in its turn, from its reasoning to the end of its answer.

    Args:
        number: of the message, for errors.
        message: reasoning, content and tool calls of it must all be there.
        text: the text of the chat.
        start: where the turn starts in it.
        stop: where the turn stops.

    Raises:
        UnusableChat: something of it is not there.
    """
    content = message.get("content", "")
    if len(message) == 2 and "content" in message and text.startswith(content, start, stop):
        return start, start + len(content.rstrip())
    turn = text[start:stop]
    spans: list[Span] = []
    for name, said in (("reasoning", reasoning_of(message)), ("content", content)):
        if parts := _parts(said):
            found = _search(parts, turn, spans[-1][1] if spans else 0)
            if not found:
                raise _lost(number, f"the {name}")
            spans.append(found)
    if calls := message.get("tool_calls"):
        _check_calls(number, calls, turn, spans)
    return (start + spans[0][0], start + spans[-1][1]) if spans else (start, start)


def check_written(messages: list[Message], text: str, turns: Mapping[int, Span]) -> None:
    """Check that what everybody but the assistant says is in the text, as it is or as JSON.

    Args:
        messages: the chat.
        text: its text.
        turns: where the turns of some of the assistant's messages stand: what was said before must stand before, and
            what was said after, except by those who open a chat, after.

    Raises:
        UnusableChat: something of it is not there.
    """
    starts = [limit := len(text)]
    for number in range(len(messages) - 1, 0, -1):
        starts.append(limit := turns[number][0] if number in turns else limit)
    position = floor = 0
    for number, message in enumerate(messages):
        limit = starts.pop()
        if message["role"] == "assistant":
            floor = turns[number][1] if number in turns else floor
            position = max(position, floor)
            continue
        content = message["content"]
        found = text.find(content, position, limit)
        if found >= 0:
            position = found + len(content)
            continue
        begin = 0 if message["role"] in OPENING_ROLES else floor
        if not any(text.find(form, begin, limit) >= 0 for form in _forms(content.strip())):
            raise _lost(number, f"the content ({message['role']})")


def check_whole(messages: list[Message], answers: list[int], text: str) -> None:
    """Check that a chat of which all is trained is all there, but for reasoning before the last answer.

    Raises:
        UnusableChat: something of it is not there, or the answers do not stand behind what they answer.
    """
    check_written(messages, text, {})
    position = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            content = message["content"].strip()
            found = text.find(content, position)
            position = found + len(content) if found >= 0 else position
            continue
        if number != answers[-1]:
            message = {name: value for name, value in message.items() if name not in REASONING_KEYS}
            message["content"] = message.get("content", "").rpartition(CLOSE)[2]
        _, position = find_said(number, message, text, position, len(text))


def _parts(said: str) -> list[str]:
    """The texts of a content and the tags of reasoning blocks between them."""
    said = said[_EMPTY_BEGINNING.match(said).end() :]  # type: ignore[union-attr]
    return [part.strip() for part in _TAGS.split(said) if part.strip()]


def _search(parts: Sequence[str], turn: str, position: int) -> Span | None:
    """The first place from ``position`` on where the parts stand one after the other."""
    while (begin := turn.find(parts[0], position)) >= 0:
        end: int | None = begin
        for part in parts:
            end = None if end is None else _end_of(part, turn, end)
        if end is not None and not _within_words(turn, begin, end):
            return begin, end
        position = begin + 1
    return None


def _end_of(part: str, turn: str, begin: int) -> int | None:
    if part in _BETWEEN:
        between = _BETWEEN[part].match(turn, begin)
        return between.end() if between else None
    return begin + len(part) if turn.startswith(part, begin) else None


def _within_words(turn: str, begin: int, end: int) -> bool:
    """Whether a text that is not at the start only makes part of a longer word: of the template, say, or of a call."""
    if not turn[:begin].strip():
        return False
    before, after = turn[begin - 1 : begin + 1], turn[end - 1 : end + 1]
    return before.isalnum() or (len(after) == 2 and after.isalnum())


def _check_calls(number: int, calls: Any, turn: str, spans: list[Span]) -> None:
    for begin, end in reversed(spans):  # what stands in the content does not count
        turn = f"{turn[:begin]}\0{turn[end:]}"
    needed = Counter(text for call in calls for text in _texts_of_call(call))
    for text, times in sorted(needed.items(), key=lambda item: -len(item[0])):
        form = next((form for form in _forms(text) if turn.count(form) >= times), None)
        if form is None:
            raise _lost(number, f"{text!r} of the tool calls")
        turn = turn.replace(form, "\0", times)


def _texts_of_call(call: Mapping[str, Any]) -> Iterator[str]:
    function = call.get("function", call)
    yield function["name"]
    yield from _texts_in(function.get("arguments"))


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _forms(text: str) -> Iterator[str]:
    yield text
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text)[1:-1]


def _lost(number: int, what: str) -> UnusableChat:
    return UnusableChat(f"the chat template does not write {what} of message {number} as it is", CONTENT_LOST, _REMEDY)
