"""What a chat template does to every chat, found out once by letting it write a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from arctic_huggingface.chat.messages import REASONING_KEYS, Message
from arctic_huggingface.chat.refusals import UnusableChat
from arctic_huggingface.chat.rendering import ChatTemplate
from arctic_huggingface.chat.think import OPEN

_QUESTION = {"role": "user", "content": "What grows on the moor?"}
_ANSWER = {"role": "assistant", "content": "Heather, mostly."}
_OPENINGS: tuple[list[Message], ...] = ([], [{"role": "system", "content": "Know your plants."}])
_WORD = "quagmire"
_MORE: dict[str, dict[str, Any]] = {
    "reasoning": dict.fromkeys(REASONING_KEYS, _WORD),
    "tool calls": {"tool_calls": [{"type": "function", "function": {"name": _WORD, "arguments": {"depth": "low"}}}]},
}

FindBlock = Callable[[list[Message]], tuple[int, str]]


class Habits(NamedTuple):
    """What a template does to every chat.

    Attributes:
        tail: a special token that it writes at the end of a chat, after the one that ends the turn.
        header: what it writes before an answer though it has no generation prompt.
        ends: whether it ends an answer with a special token.
        prompt_in_block: whether its generation blocks hold what its generation prompt writes.
        leaves_out: what it does not write of ``reasoning`` and ``tool calls``, or of these ``with content``.
    """

    tail: str = ""
    header: str = ""
    ends: bool = False
    prompt_in_block: bool = False
    leaves_out: frozenset[str] = frozenset()


def habits_of(template: ChatTemplate, specials: tuple[str, ...], find_block: FindBlock | None) -> Habits:
    """The habits of a template, as far as it does not refuse to show them.

    Args:
        template: the template.
        specials: the texts of the tokenizer's special tokens, the longest first.
        find_block: tells where the first generation block starts and what it holds, for templates that have them.
    """
    for opening in _OPENINGS:
        try:
            habits = _habits(template, [*opening, _QUESTION], specials, find_block)
        except UnusableChat:
            continue
        return habits._replace(leaves_out=frozenset(_left_out(template, [*opening, _QUESTION])))
    return Habits()


def _habits(
    template: ChatTemplate, asked: list[Message], specials: tuple[str, ...], find_block: FindBlock | None
) -> Habits:
    chat = [*asked, _ANSWER]
    prompt = template.text(asked, plain=True, prompt=True)
    if find_block:
        start, block = find_block(chat)
        return Habits(ends=block.rstrip().endswith(specials), prompt_in_block=start < len(prompt))
    answered, going_on = template.text(chat, plain=True), template.text([*chat, _QUESTION], plain=True)
    tail = "" if going_on.startswith(answered) else _tail(answered, going_on, specials)
    header = ""
    begin = answered.find(_ANSWER["content"], len(prompt))
    if begin >= 0 and answered.startswith(prompt) and prompt == template.text(asked, plain=True):
        header = answered[len(prompt) : begin].strip()
    ends = answered.removesuffix(tail).rstrip().endswith(specials)
    return Habits(tail, "" if header.startswith(OPEN) else header, ends)


def _tail(answered: str, going_on: str, specials: tuple[str, ...]) -> str:
    """The special token after the end of turn that is only there where the chat ends, with white space around it."""
    stripped, answer = answered.rstrip(), _ANSWER["content"]
    for special in specials:
        body = stripped.removesuffix(special)
        end_of_turn = body[body.rfind(answer) + len(answer) :].rstrip()
        if body != stripped and going_on.startswith(body) and end_of_turn.endswith(specials):
            return answered[len(body) :]
    return ""


def _left_out(template: ChatTemplate, asked: list[Message]) -> Iterator[str]:
    for name, more in _MORE.items():
        try:
            text = template.text([*asked, {**_ANSWER, **more}], plain=False)
        except UnusableChat:
            continue  # it has wishes that this chat does not meet; each row tells
        if _WORD not in text:
            yield name
        elif _ANSWER["content"] not in text:
            yield f"{name} with content"
