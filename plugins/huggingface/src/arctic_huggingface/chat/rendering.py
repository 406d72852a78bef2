"""Writes chats as text with a tokenizer's chat template: what ``apply_chat_template`` gives, in less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arctic_huggingface.chat.messages import Message
from arctic_huggingface.chat.refusals import TEMPLATE_REFUSES, UnusableChat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Writer = Callable[[list[Message], bool], str]

ANOTHER_TEMPLATE = (
    "give a template whose assistant text stands in {% generation %} blocks (tokenizer.chat_template), "
    "or train on whole chats with data.mask_inputs: false"
)


class ChatTemplate:
    """One chat template of a tokenizer.

    Chats that hold nothing but roles and text are written by the compiled template itself, which takes less than half
    the time. The first of them is written both ways; if the texts differ, or transformers no longer has the function
    that compiles, ``apply_chat_template`` writes all chats, as it does those with tools and other keys.

    Args:
        tokenizer: whose special tokens the template may use.
        source: the text of the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self._write: Writer | None = None
        self._settled = False

    def text(self, messages: list[Message], tools: Any = None, *, plain: bool, prompt: bool = False) -> str:
        """The text of a chat.

        Args:
            messages: the chat.
            tools: functions that the assistant may call.
            plain: whether the messages hold nothing but roles and text, and there are no tools.
            prompt: end with the beginning of an answer.

        Raises:
            UnusableChat: the template refuses the chat.
        """
        from jinja2 import TemplateError

        try:
            if not plain:
                return self._by_tokenizer(messages, tools, prompt)
            if self._write:
                return self._write(messages, prompt)
            text = self._by_tokenizer(messages, tools, prompt)
            if not self._settled:
                self._write = self._writer(messages, prompt, text)
                self._settled = True
            return text
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # What a template raises by itself, or by touching what is absent.
            raise UnusableChat(
                f"the chat template refuses the chat: {error}", TEMPLATE_REFUSES, ANOTHER_TEMPLATE
            ) from error

    def _by_tokenizer(self, messages: list[Message], tools: Any, prompt: bool) -> str:
        text: Any = self.tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=self.source, tokenize=False, add_generation_prompt=prompt
        )
        return text

    def _writer(self, messages: list[Message], prompt: bool, text: str) -> Writer | None:
        """A function that writes plain chats, if there is one that writes this chat as this text."""
        from transformers import PreTrainedTokenizerBase

        ours = getattr(type(self.tokenizer), "apply_chat_template", None)
        if ours is not PreTrainedTokenizerBase.apply_chat_template:
            return None
        try:
            write = _compiled(self.source, self.tokenizer.special_tokens_map)
            return write if write(messages, prompt) == text else None
        except (ImportError, AttributeError, TypeError):
            return None


def _compiled(source: str, special_tokens: dict[str, str]) -> Writer:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template: Any = _compile_jinja_template(source)
    # Names that are the same for all chats, put together once: that is most of what a short template costs.
    names = {**template.globals, "tools": None, "documents": None, **special_tokens}

    def write(messages: list[Message], prompt: bool) -> str:
        variables = {**names, "messages": messages, "add_generation_prompt": prompt}
        return "".join(template.root_render_func(template.new_context(variables, shared=True)))

    return write
