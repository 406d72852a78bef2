"""Which characters of a rendered chat the assistant said, from the structure of the chat template.

A template with ``{% generation %}`` blocks says so itself: it is rendered a second time with a mark at both ends of
each block, and without the marks that must be the same text. Any other template is rendered up to each assistant turn,
with the generation prompt, and through it: what lies between the two is the turn, if each rendering begins with the one
before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_sft.messages import checked_messages
from arctic_sft.refusals import HISTORY_REWRITTEN, NO_MASK, TEMPLATE_REFUSES, UnusableChat
from arctic_training.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Span = tuple[int, int]

REMEDY = (
    "give a template whose assistant text stands in {% generation %} blocks (tokenizer.chat_template), "
    "or train on whole chats with data.mask_inputs: false"
)
_BLOCK_START = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_BLOCK_END = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
# Code points that Unicode keeps out of text, for use within a program.
_START_MARK, _END_MARK = "\ufdd0", "\ufdd1"
_MARKED_TURN = re.compile(f"{_START_MARK}([^{_START_MARK}{_END_MARK}]*){_END_MARK}")


class Rendered(NamedTuple):
    """The text of a chat, and the characters from ``start`` to ``stop`` (exclusive) of each assistant turn in it."""

    text: str
    turns: list[Span]


class TurnFinder:
    """Renders chats with a tokenizer's template and finds the assistant's turns in them.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        try:
            self.template: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                "the tokenizer has no chat template, so chats cannot be written out for it",
                remedy="set tokenizer.chat_template in the recipe to a template or to the path of one",
            ) from error
        self.marked_template = _marked(self.template) if _BLOCK_START.search(self.template) else None

    def text(self, chat: Any, tools: Any = None) -> str:
        """The text of a chat.

        Args:
            chat: its messages.
            tools: functions that the assistant may call, as the template takes them.

        Raises:
            UnusableChat: the messages are out of order, or the template refuses them.
        """
        return self._render(checked_messages(chat), tools)

    def turns(self, chat: Any, tools: Any = None) -> Rendered:
        """The text of a chat and the assistant's turns in it; arguments as of ``text``.

        Raises:
            UnusableChat: the messages are out of order, or the template does not let the turns be established.
        """
        messages = checked_messages(chat)
        find = self._turns_from_blocks if self.marked_template else self._turns_from_prefixes
        return find(messages, tools)

    def _turns_from_prefixes(self, messages: list[Message], tools: Any) -> Rendered:
        text = self._render(messages, tools)
        turns = []
        for number in _assistant_messages(messages):
            before = self._render(messages[:number], tools, add_generation_prompt=True)
            through = text if number == len(messages) - 1 else self._render(messages[: number + 1], tools)
            if not text.startswith(through):
                raise UnusableChat(
                    f"the chat template writes the chat up to message {number} differently once more messages follow, "
                    "so what the assistant said there cannot be established",
                    HISTORY_REWRITTEN,
                    REMEDY,
                )
            if not through.startswith(before):
                raise UnusableChat(
                    f"the chat template's generation prompt is not how it begins message {number}, "
                    "so where the assistant's text starts cannot be established",
                    NO_MASK,
                    REMEDY,
                )
            turns.append((len(before), len(through)))
        return Rendered(text, turns)

    def _turns_from_blocks(self, messages: list[Message], tools: Any) -> Rendered:
        text = self._render(messages, tools)
        marked = self._render(messages, tools, chat_template=self.marked_template)
        turns = [
            (found.start() - 2 * number, found.end() - 2 * number - 2)
            for number, found in enumerate(_MARKED_TURN.finditer(marked))
        ]
        if marked.replace(_START_MARK, "").replace(_END_MARK, "") != text:
            raise UnusableChat(
                "the chat template writes something else when its generation blocks are marked, "
                "so what they hold cannot be established",
                NO_MASK,
                "let the template write its {% generation %} blocks as they are, without filters around them",
            )
        num_answers = len(_assistant_messages(messages))
        if len(turns) != num_answers:
            raise UnusableChat(
                f"the chat template has {len(turns)} generation blocks for {num_answers} assistant messages",
                NO_MASK,
                "put the text of every assistant message into one {% generation %} block of the template",
            )
        return Rendered(text, turns)

    def _render(self, messages: list[Message], tools: Any, **options: Any) -> str:
        from jinja2 import TemplateError

        try:
            text: Any = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            # What a template raises by itself, or by touching what is absent.
            raise UnusableChat(f"the chat template refuses the chat: {error}", TEMPLATE_REFUSES, REMEDY) from error
        return text


def _marked(template: str) -> str:
    """The template with marks around what its generation blocks write; ``with`` has the scope that such a block has."""
    template = _BLOCK_START.sub(rf"{{%\1 print '{_START_MARK}' %}}{{% with \2%}}", template)
    return _BLOCK_END.sub(rf"{{%\1 endwith %}}{{% print '{_END_MARK}' \2%}}", template)


def _assistant_messages(messages: list[Message]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]
