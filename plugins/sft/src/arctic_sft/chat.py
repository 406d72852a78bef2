"""Chats to token ids and labels: what the tokenizer's chat template writes, and which of it the assistant said.

The trained span of each assistant turn follows from the structure of the template and never from looking for the
answer's text, which a prompt may quote, a template may strip, and a chat may hold twice. What cannot be established this
way is an error that names the row.

Rules:

1. A template with ``{% generation %}`` blocks says itself what the assistant generates: one block for each assistant
   turn, checked to lie within that turn.
2. Any other template is rendered up to each assistant turn, with the generation prompt, and through it. Each rendering
   must begin with the one before, and the whole chat with all of them; the turn is what lies between the two.
3. A turn is trained through its end-of-turn token: the last special token in the span, when nothing but white space
   follows it there. That white space is not trained. Without such a token the span is trained to its end.
4. The text is tokenised once. A token belongs to the span in which it starts; one that begins before a span and reaches
   into it leaves the mask undecided and is an error.
5. The first token of a chat has no label, since nothing predicts it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from arctic_sft.messages import UnusableChat, checked_messages
from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Message = dict[str, Any]
    Span = tuple[int, int]

EMPTY_THINK = "<think>\n\n</think>\n\n"
"""What reasoning templates write at the start of an answer that holds no reasoning."""

_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_GENERATION_REMEDY = (
    "give a template whose assistant text stands in {% generation %} blocks (tokenizer.chat_template), "
    "or train on whole chats with data.mask_inputs: false"
)


class ChatEncoder:
    """Encodes chats with one tokenizer. Holds nothing else, so that worker processes can receive it.

    Args:
        tokenizer: with a chat template.
        mask_inputs: train only what the assistant said; otherwise everything but the first token.
        ignore_empty_think: leave out an empty reasoning block at the start of an assistant turn.

    Raises:
        DataError: the tokenizer has no chat template, or cannot tell which text a token stands for.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, mask_inputs: bool = True, ignore_empty_think: bool = False
    ) -> None:
        self.tokenizer = tokenizer
        self.mask_inputs = mask_inputs
        self.ignore_empty_think = ignore_empty_think
        self.template = _template_of(tokenizer)
        self.needs_spans = mask_inputs or ignore_empty_think
        if self.needs_spans and not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} cannot tell which text a token stands for, so no mask can be made",
                remedy="use a fast tokenizer, or train on whole chats with data.mask_inputs: false",
            )
        self.special_ids = frozenset(
            [*tokenizer.all_special_ids, *(id for id, token in tokenizer.added_tokens_decoder.items() if token.special)]
        )

    def __call__(self, chats: Sequence[Any], rows: Sequence[int]) -> dict[str, list[list[int]]]:
        """Ids and labels of chats.

        Args:
            chats: lists of messages, each a mapping with ``role`` and ``content``.
            rows: the number of each chat's row, for errors.

        Returns:
            ``input_ids`` and ``labels``, lists of equal length for each chat; a label is the token itself or -100.

        Raises:
            DataError: a chat cannot be rendered or masked; names its row.
        """
        rendered = [self._at_row(row, self.render, chat) for chat, row in zip(chats, rows, strict=True)]
        encoded = self.tokenizer(
            [text for text, _ in rendered],
            add_special_tokens=False,  # the template writes them
            return_attention_mask=False,
            return_offsets_mapping=self.needs_spans,
            verbose=False,  # over-long rows are handled, and counted, after this
        )
        labels = []
        for position, (row, (text, spans)) in enumerate(zip(rows, rendered, strict=True)):
            offsets = encoded["offset_mapping"][position] if self.needs_spans else []
            labels.append(self._at_row(row, self._labels, encoded["input_ids"][position], offsets, text, spans))
        return {"input_ids": encoded["input_ids"], "labels": labels}

    def render(self, chat: Any) -> tuple[str, list[Span]]:
        """The text of a chat, and the characters of each assistant turn in it when labels depend on them.

        Raises:
            UnusableChat: the messages are out of order, or the template does not let the turns be established.
        """
        messages = checked_messages(chat)
        if not self.needs_spans:
            return self._text(messages), []
        if _GENERATION_BLOCK.search(self.template):
            return self._spans_from_blocks(messages)
        text = self._text(messages)
        return text, self._spans_from_prefixes(messages, text)

    def _at_row(self, row: int, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except UnusableChat as error:
            raise DataError(f"row {row}: {error}", remedy=error.remedy) from error

    def _text(self, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise UnusableChat(f"the chat template refuses the chat: {error}", _GENERATION_REMEDY) from error

    def _spans_from_prefixes(self, messages: list[Message], text: str) -> list[Span]:
        spans = []
        for number in _assistant_turns(messages):
            before = self._text(messages[:number], add_generation_prompt=True)
            through = text if number == len(messages) - 1 else self._text(messages[: number + 1])
            if not text.startswith(through):
                raise UnusableChat(
                    f"the chat template writes the chat up to message {number} differently once more messages follow, "
                    "so what the assistant said there cannot be established",
                    _GENERATION_REMEDY,
                )
            if not through.startswith(before):
                raise UnusableChat(
                    f"the chat template's generation prompt is not how it begins message {number}, "
                    "so where the assistant's text starts cannot be established",
                    _GENERATION_REMEDY,
                )
            spans.append((len(before), len(through)))
        return spans

    def _spans_from_blocks(self, messages: list[Message]) -> tuple[str, list[Span]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[messages],
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            raise UnusableChat(f"the chat template refuses the chat: {error}", "") from error
        text, turns = texts[0], _assistant_turns(messages)
        if len(spans[0]) != len(turns):
            raise UnusableChat(
                f"the chat template has {len(spans[0])} generation blocks for {len(turns)} assistant messages",
                "put the text of every assistant message into one {% generation %} block of the template",
            )
        for number, (start, stop) in zip(turns, spans[0], strict=True):
            first, last = self._extent(messages, number, text)
            if not first <= start <= stop <= last:
                raise UnusableChat(
                    f"the generation block of message {number} does not lie within that message",
                    "write the {% generation %} block where the message is written, outside macros and assignments",
                )
        return text, spans[0]

    def _extent(self, messages: list[Message], number: int, text: str) -> Span:
        """The characters that message ``number`` may lie in: exact where renderings are prefixes, else wider."""
        extent = []
        for end, otherwise in ((number, 0), (number + 1, len(text))):
            try:
                prefix = self._text(messages[:end])
            except UnusableChat:  # a template may refuse part of a chat; it has rendered the whole
                prefix = None
            extent.append(len(prefix) if prefix is not None and text.startswith(prefix) else otherwise)
        return extent[0], extent[1]

    def _labels(self, ids: list[int], offsets: list[Span], text: str, spans: list[Span]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise UnusableChat(
                f"the chat begins with two {self.tokenizer.bos_token} tokens",
                "let the chat template write it once, and take it out of the messages",
            )
        labels = list(ids) if not self.mask_inputs else [IGNORE_INDEX] * len(ids)
        if self.needs_spans:
            tokens = _TokenPlaces(ids, offsets, text, self.special_ids)
            for start, stop in spans:
                first, last = tokens.within(start, stop)
                labels[first:last] = ids[first:last]
                if self.ignore_empty_think and text.startswith(EMPTY_THINK, start):
                    answer = tokens.first_from(start + len(EMPTY_THINK))
                    labels[first:answer] = [IGNORE_INDEX] * (answer - first)
        labels[:1] = [IGNORE_INDEX] * len(labels[:1])
        if all(label == IGNORE_INDEX for label in labels):
            raise UnusableChat("has no token to train on", "remove the row, or see which text its messages hold")
        return labels


class _TokenPlaces:
    """Where the tokens of one text start and end, in characters."""

    def __init__(self, ids: list[int], offsets: list[Span], text: str, special_ids: frozenset[int]) -> None:
        self.ids = ids
        self.text = text
        self.special_ids = special_ids
        self.starts: list[int] = []
        self.ends: list[int] = []
        reached = 0
        for start, end in offsets:
            # Byte-level tokenizers may leave the spaces of a token out of its offsets; give them back to it.
            if start > reached and text[reached:start].isspace():
                start = reached
            self.starts.append(start)
            self.ends.append(end)
            reached = max(reached, end)
        if any(left > right for left, right in zip(self.starts, self.starts[1:], strict=False)):
            raise UnusableChat("the tokenizer's offsets do not follow the text", _GENERATION_REMEDY)

    def first_from(self, character: int) -> int:
        """The first token that starts at this character or after it."""
        return bisect_left(self.starts, character)

    def within(self, start: int, stop: int) -> Span:
        """The tokens of a turn, from the first to one past the end-of-turn token."""
        first, last = self.first_from(start), self.first_from(stop)
        if first and self.ends[first - 1] > start and not self._only_swallows_space(first - 1, start):
            token = self.text[self.starts[first - 1] : self.ends[first - 1]]
            raise UnusableChat(
                f"the token {token!r} begins before the assistant's text and reaches into it",
                "end the chat template's generation prompt with a special token or a line break",
            )
        for token in range(last - 1, first - 1, -1):
            if self.ids[token] in self.special_ids:
                return first, token + 1
            if self.text[self.starts[token] : self.ends[token]].strip():
                break
        return first, last

    def _only_swallows_space(self, token: int, start: int) -> bool:
        """Whether a special token reaches past ``start`` only because it takes the white space after it along."""
        return self.ids[token] in self.special_ids and self.text[start : self.ends[token]].isspace()


def _assistant_turns(messages: list[Message]) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            "the tokenizer has no chat template, so chats cannot be written out for it",
            remedy="set tokenizer.chat_template in the recipe to a template or to the path of one",
        ) from error
