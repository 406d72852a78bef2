"""Which characters of a rendered chat the assistant said, from the structure of the chat template.

A template with ``{% generation %}`` blocks says so itself: it is rendered a second time with a mark at both ends of
each block, and without the marks that must be the same text. Any other template is rendered up to each assistant turn,
with the generation prompt, and through it: what lies between the two is the turn, if each rendering begins with the one
before. Either way the turn must hold what the message says, and be the same when it is the last.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from arctic_huggingface.chat.messages import Chat, Message, reasoning_of
from arctic_huggingface.chat.probing import habits_of
from arctic_huggingface.chat.refusals import CONTENT_LOST, HISTORY_REWRITTEN, NO_MASK, UnusableChat
from arctic_huggingface.chat.rendering import ANOTHER_TEMPLATE, ChatTemplate
from arctic_huggingface.chat.said import find_said
from arctic_huggingface.faults import INVALID_TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

_BLOCK_START = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_BLOCK_END = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
# Tags within which a template may look at what a block wrote, instead of writing it.
_LOOKS_AT_TEXT = re.compile(r"\b(endset|endfilter|endmacro|endcall|endblock|extends|include|import)\b")
# Code points that Unicode keeps out of text, for use within a program.
_START_MARK, _END_MARK = "\ufdd0", "\ufdd1"
COMPARED_CHATS = 100
"""Plain chats whose text is compared with and without marks before it is taken from what has them."""


Span = tuple[int, int]


class Turn(NamedTuple):
    """An assistant's turn: the characters from ``start`` to ``stop`` (exclusive) of a chat's text.

    Attributes:
        number: of its message.
        start: where it starts, after the generation prompt.
        stop: where it stops; there may be white space after its end-of-turn token.
        said: where what the assistant said ends, so that its end-of-turn token does not start before.
        end_token: where the special token that ends the turn starts, -1 for none.
    """

    number: int
    start: int
    stop: int
    said: int
    end_token: int


class TurnFinder:
    """Renders chats with one template and finds the assistant's turns in them.

    Args:
        tokenizer: the tokenizer.
        source: the template.
        specials: the texts of the tokenizer's special tokens, the longest first.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, specials: tuple[str, ...]) -> None:
        self.template = ChatTemplate(tokenizer, source)
        self.specials = specials
        self.usual = "\0"  # the special token that ended the turn before: there may be hundreds of them
        self.marked = ChatTemplate(tokenizer, _marked(source)) if _BLOCK_START.search(source) else None
        # Without such tags marks go straight into the text. So a plain chat, after many that were compared, is rendered
        # with marks alone.
        self.marks_are_free = bool(self.marked) and not _LOOKS_AT_TEXT.search(source)
        self._compared = 0
        self._seen: tuple[Chat, str, list[Span]] | None = None
        self.habits = habits_of(self.template, specials, self._first_block if self.marked else None)

    def text(self, chat: Chat) -> str:
        """The text of a chat.

        Raises:
            UnusableChat: the template refuses it, or leaves something of it out.
        """
        if not chat.plain:
            self._check_parts(chat)
        if self.marks_are_free and chat.plain and self._compared >= COMPARED_CHATS:
            text, blocks = self._blocks(chat)
            self._seen = chat, text, blocks
            return text
        return self.template.text(chat.messages, chat.tools, plain=chat.plain)

    def turns(self, chat: Chat, text: str, numbers: Sequence[int]) -> list[Turn]:
        """The assistant's turns.

        Args:
            chat: the chat.
            text: what ``text`` gives for it.
            numbers: of the messages whose turns are wanted.

        Raises:
            UnusableChat: the template does not let the turns be established.
        """
        find = self._turns_from_blocks if self.marked else self._turns_from_prefixes
        return find(chat, text, numbers)

    def _turns_from_prefixes(self, chat: Chat, text: str, numbers: Sequence[int]) -> list[Turn]:
        if self.habits.header:
            raise UnusableChat(
                f"the chat template writes {self.habits.header!r} before an answer and not as a generation prompt, "
                "so where the assistant's text starts cannot be established",
                NO_MASK,
                "let the template write it when add_generation_prompt is true",
            )
        turns = []
        for number in numbers:
            start = self._prompt_end(chat, text, number)
            if number == len(chat.messages) - 1:
                stop = self._without_tail(text)
            else:
                through = self.template.text(chat.messages[: number + 1], chat.tools, plain=chat.plain)
                stop = self._without_tail(through)
                if not text.startswith(through[:stop]):
                    raise _rewritten(number)
            if start is None or stop < start:
                raise _no_prompt(number)
            turns.append(self._turn(chat, text, number, start, stop))
        return turns

    def _prompt_end(self, chat: Chat, text: str, number: int) -> int | None:
        """Where the generation prompt before a message ends, if the text begins with it."""
        before = self.template.text(chat.messages[:number], chat.tools, plain=chat.plain, prompt=True)
        return len(before) if text.startswith(before) else None

    def _without_tail(self, text: str) -> int:
        return len(text) - len(self.habits.tail) if text.endswith(self.habits.tail) else len(text)

    def _turn(self, chat: Chat, text: str, number: int, start: int, stop: int) -> Turn:
        """The turn, after checking that it holds what its message says before the token that ends it."""
        end_token = self._end_token(text, start, stop) if self.habits.ends else -1
        _, said = find_said(number, chat.messages[number], text, start, stop if end_token < 0 else end_token)
        if end_token < 0:
            end_token = self._end_token(text, said, stop)
        return Turn(number, start, stop, said, end_token)

    def _end_token(self, text: str, said: int, stop: int) -> int:
        """Where the special token starts that nothing but white space follows, -1 where there is none."""
        rest = text[said:stop].rstrip()
        if not rest.endswith(self.usual):
            if not rest.endswith(self.specials):
                return -1
            self.usual = next(special for special in self.specials if rest.endswith(special))
        return said + len(rest) - len(self.usual)

    def _turns_from_blocks(self, chat: Chat, text: str, numbers: Sequence[int]) -> list[Turn]:
        if _START_MARK in text or _END_MARK in text:
            raise _holds_marks()
        if self._seen is not None and self._seen[0] is chat and self._seen[1] is text:
            unmarked, blocks = self._seen[1:]
        else:
            unmarked, blocks = self._blocks(chat)
        if unmarked != text:
            raise UnusableChat(
                "the chat template writes something else when its generation blocks are marked, "
                "so what they hold cannot be established",
                NO_MASK,
                "let the template write its {% generation %} blocks as they are, without filters around them",
            )
        self._compared += chat.plain
        turns = []
        for number in numbers:
            start, stop = blocks[chat.answers.index(number)]
            after = text[stop:]
            if number != len(chat.messages) - 1:
                alone, its_blocks = self._blocks(chat.until(number))
                its_start, its_stop = its_blocks[-1]
                if alone[its_start:its_stop] != text[start:stop]:
                    raise _rewritten(number)
                after = alone[its_stop:]
            turns.append(self._turn_of_block(chat, text, number, start, stop, after))
        return turns

    def _turn_of_block(self, chat: Chat, text: str, number: int, start: int, stop: int, after: str) -> Turn:
        """The turn of a block, without what a generation prompt writes and with the end-of-turn token after it.

        Args:
            after: what follows the block where the chat ends with it.
        """
        if self.habits.prompt_in_block:
            prompt_end = self._prompt_end(chat, text, number)
            if prompt_end is None or prompt_end > stop:
                raise _no_prompt(number)
            start = max(start, prompt_end)
        turn = self._turn(chat, text, number, start, stop)
        if turn.end_token < 0:  # a block may end before it
            end = next((special for special in self.specials if after.startswith(special)), "")
            if end and text.startswith(end, stop):
                return turn._replace(end_token=stop, stop=stop + len(end))
        return turn

    def _check_parts(self, chat: Chat) -> None:
        """Check that the template writes the parts that the chat has besides contents."""
        parts = {"tools"} if chat.tools and "tools" not in self.template.source else set()
        for number in chat.answers:
            message = chat.messages[number]
            held = {"reasoning": reasoning_of(message), "tool calls": message.get("tool_calls")}
            parts |= {name for name, value in held.items() if value}
            if message.get("content", "").strip():
                parts |= {f"{name} with content" for name, value in held.items() if value}
        for part in sorted(parts & {"tools", *self.habits.leaves_out}):
            raise UnusableChat(
                f"the row has {part}, and the chat template does not write that",
                CONTENT_LOST,
                "give a chat template that writes it (tokenizer.chat_template), or leave it out",
            )

    def _first_block(self, messages: list[Message]) -> tuple[int, str]:
        """Where the first block starts in the text of plain messages, and what it holds."""
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        text, blocks = self._blocks(Chat(messages, None, answers))
        start, stop = blocks[0]
        return start, text[start:stop]

    def _blocks(self, chat: Chat) -> tuple[str, list[Span]]:
        """The text of a chat and where the blocks of its assistant messages stand in it."""
        assert self.marked
        before, *rest = self.marked.text(chat.messages, chat.tools, plain=chat.plain).split(_START_MARK)
        parts, position, blocks = [before], len(before), []
        for marked in rest:
            block, mark, after = marked.partition(_END_MARK)
            if mark:
                blocks.append((position, position + len(block)))
            parts += block, after
            position += len(block) + len(after)
        text = "".join(parts)
        if len(rest) > len(blocks) or _END_MARK in text:
            raise _holds_marks()
        if len(blocks) != len(chat.answers):
            raise UnusableChat(
                f"the chat template has {len(blocks)} generation blocks for {len(chat.answers)} assistant messages",
                NO_MASK,
                "put the text of every assistant message into one {% generation %} block of the template",
            )
        return text, blocks


def _holds_marks() -> UnusableChat:
    return UnusableChat(
        "the chat holds U+FDD0 or U+FDD1, which Unicode keeps out of text", INVALID_TEXT, "take them out"
    )


def _no_prompt(number: int) -> UnusableChat:
    return UnusableChat(
        f"the chat template's generation prompt is not how it begins message {number}, "
        "so where the assistant's text starts cannot be established",
        NO_MASK,
        ANOTHER_TEMPLATE,
    )


def _rewritten(number: int) -> UnusableChat:
    return UnusableChat(
        f"the chat template writes the chat up to message {number} differently once more messages follow, so training "
        "on it there would not train what the assistant says when it answers",
        HISTORY_REWRITTEN,
        "choose data.train_turns: one_row_per_turn, or last for chats that end with an answer",
    )


def _marked(source: str) -> str:
    """The template with marks around what its generation blocks write; ``with`` has the scope that such a block has."""
    source = _BLOCK_START.sub(rf"{{%\1 print '{_START_MARK}' %}}{{% with \2%}}", source)
    return _BLOCK_END.sub(rf"{{%\1 endwith %}}{{% print '{_END_MARK}' \2%}}", source)
