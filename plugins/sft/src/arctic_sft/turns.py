"""Which characters of a rendered chat the assistant said, from the structure of the chat template.

A template with ``{% generation %}`` blocks says so itself. Any other is rendered up to each assistant turn, with the
generation prompt, and through it: what lies between the two is the turn, if each rendering begins with the one before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_sft.messages import UnusableChat, checked_messages
from arctic_training.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
Span = tuple[int, int]

REMEDY = (
    "give a template whose assistant text stands in {% generation %} blocks (tokenizer.chat_template), "
    "or train on whole chats with data.mask_inputs: false"
)
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
        self.has_blocks = bool(_GENERATION_BLOCK.search(self.template))

    def text(self, chat: Any) -> str:
        """The text of a chat.

        Raises:
            UnusableChat: the messages are out of order, or the template refuses them.
        """
        return self._render(checked_messages(chat))

    def turns(self, chat: Any) -> Rendered:
        """The text of a chat and the assistant's turns in it.

        Raises:
            UnusableChat: the messages are out of order, or the template does not let the turns be established.
        """
        messages = checked_messages(chat)
        return self._turns_from_blocks(messages) if self.has_blocks else self._turns_from_prefixes(messages)

    def _turns_from_prefixes(self, messages: list[Message]) -> Rendered:
        text = self._render(messages)
        turns = []
        for number in _assistant_messages(messages):
            before = self._render(messages[:number], add_generation_prompt=True)
            through = text if number == len(messages) - 1 else self._render(messages[: number + 1])
            if not text.startswith(through):
                raise UnusableChat(
                    f"the chat template writes the chat up to message {number} differently once more messages follow, "
                    "so what the assistant said there cannot be established",
                    REMEDY,
                )
            if not through.startswith(before):
                raise UnusableChat(
                    f"the chat template's generation prompt is not how it begins message {number}, "
                    "so where the assistant's text starts cannot be established",
                    REMEDY,
                )
            turns.append((len(before), len(through)))
        return Rendered(text, turns)

    def _turns_from_blocks(self, messages: list[Message]) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, blocks = _refusals_told(
            render_jinja_template,
            conversations=[messages],
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        text, turns = texts[0], [(start, stop) for start, stop in blocks[0]]
        numbers = _assistant_messages(messages)
        if len(turns) != len(numbers):
            raise UnusableChat(
                f"the chat template has {len(turns)} generation blocks for {len(numbers)} assistant messages",
                "put the text of every assistant message into one {% generation %} block of the template",
            )
        for number, (start, stop) in zip(numbers, turns, strict=True):
            earliest, latest = self._extent(messages, number, text)
            if not earliest <= start <= stop <= latest:
                raise UnusableChat(
                    f"the generation block of message {number} does not lie within that message",
                    "write the {% generation %} block where the message is written, outside macros and assignments",
                )
        return Rendered(text, turns)

    def _extent(self, messages: list[Message], number: int, text: str) -> Span:
        """The characters that message ``number`` may lie in: exact where renderings are prefixes, else wider."""
        extent = []
        for end, otherwise in ((number, 0), (number + 1, len(text))):
            try:
                prefix = self._render(messages[:end])
            except UnusableChat:  # a template may refuse a part of a chat whose whole it renders
                prefix = None
            extent.append(len(prefix) if prefix is not None and text.startswith(prefix) else otherwise)
        return extent[0], extent[1]

    def _render(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        return _refusals_told(
            self.tokenizer.apply_chat_template,
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )


def _refusals_told(render: Any, *arguments: Any, **options: Any) -> Any:
    """Calls a rendering function; what a template may raise, by itself or by touching what is not there, is unusable."""
    from jinja2 import TemplateError

    try:
        return render(*arguments, **options)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UnusableChat(f"the chat template refuses the chat: {error}", REMEDY) from error


def _assistant_messages(messages: list[Message]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]
