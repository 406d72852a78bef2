"""Chat templates in the manner of the families in use, written for these tests, and what is right for each of them.

``Family.right`` knows nothing of how masks are made: it says in Python what the template says in Jinja.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]

PLAIN_ROLES = frozenset({"system", "user", "assistant"})
ROLES = PLAIN_ROLES | {"developer", "tool"}


@dataclass(frozen=True)
class Family:
    """A template, what it trains of an assistant's message, and what it cannot be used for.

    Attributes:
        template: the template.
        answer: from a message to what is trained of it where it is the last, its end-of-turn token with it.
        roles: those that the template takes.
        reasoning: whether it writes reasoning that a message holds apart from its content.
        calls: whether it writes tool calls, and the tools that there are.
        loses: whether it leaves out or changes something of a message that it could write.
        rewrites: whether it writes a message of a chat differently where it is the last of it.
        never: under which word it refuses all chats.
    """

    template: str
    answer: Callable[[Message], str]
    roles: Collection[str] = ROLES
    reasoning: bool = False
    calls: bool = False
    loses: Callable[[Message], bool] = lambda message: False
    rewrites: Callable[[list[Message], int], bool] = lambda messages, number: False
    never: str = ""

    def right(self, row: Message) -> str | set[str]:
        """The text that is trained of a row, or the words under one of which it is refused."""
        messages = row["messages"]
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        said = [messages[number] for number in answers]
        refusals = set()
        if self.never:
            refusals.add(self.never)
        if not {message["role"] for message in messages} <= set(self.roles):
            refusals.add("template refuses")
        if not self.calls and (row.get("tools") or any(message.get("tool_calls") for message in said)):
            refusals |= {"content lost", "template refuses"}
        if not self.reasoning and any(reasoning_of(message) for message in said):
            refusals.add("content lost")
        if any(self.loses(message) for message in messages):
            refusals.add("content lost")
        if any(self.rewrites(messages, number) for number in answers if number != len(messages) - 1):
            refusals.add("history rewritten")
        return refusals or "".join(self.answer(message) for message in said)


def reasoning_of(message: Message) -> str:
    return (message.get("reasoning_content") or message.get("reasoning") or "").strip()


def content_of(message: Message) -> str:
    return message.get("content") or ""


def as_it_is(end: str, begin: str = "") -> Callable[[Message], str]:
    return lambda message: begin + content_of(message) + end


def stripped(end: str) -> Callable[[Message], str]:
    return lambda message: content_of(message).strip() + end


def parted(message: Message) -> tuple[str, str]:
    """Reasoning and answer, where templates part a content at ``</think>``."""
    thought, said = reasoning_of(message), content_of(message)
    if not thought and "</think>" in said:
        thought, said = said.split("</think>")[0].split("<think>")[-1].strip(), said.split("</think>")[-1]
    return thought, said


def with_thought(message: Message) -> str:
    thought, said = parted(message)
    return f"<think>\n{thought}\n</think>\n\n{said.lstrip()}{calls_of(message)}<|im_end|>"


def calls_of(message: Message) -> str:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or []]
    return "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in calls)


def forgets_thought(messages: list[Message], number: int) -> bool:
    """As Qwen 3 does: a thought is written after the last question alone, and an empty one in the last message."""
    questions = [number for number, message in enumerate(messages) if message["role"] == "user"]
    return number < questions[-1] or not parted(messages[number])[0]


def loses_thought(message: Message) -> bool:
    return message["role"] == "assistant" and bool(parted(message)[0])


def chatml(content: str = "m.content", *, calls: str = "", beginning: str = "", prompt: bool = True) -> str:
    asked = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}" if prompt else ""
    return (
        f"{beginning}{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ {content} }}}}{calls}<|im_end|>\n"
        f"{{% endfor %}}{asked}"
    )


def chatml_blocks(assistant: str) -> str:
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}" + assistant + "{% else %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_TOOLS = "{% for tool in tools or [] %}<|im_start|>system\n{{ tool | tojson }}<|im_end|>\n{% endfor %}"
_CALLS = (
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}{{ call.function | tojson }}\n</tool_call>{% endfor %}"
)  # fmt: skip
_PARTED = (
    "{% set thought = (m.reasoning_content or '').strip() %}{% set said = m.content or '' %}"
    "{% if not thought and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}"
)
_QWEN = (
    _TOOLS + "{% set last = namespace(question=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}" + _PARTED + "<|im_start|>assistant\nOPEN"
    "{% if loop.index0 > last.question and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ said.lstrip() }}" + _CALLS + "<|im_end|>CLOSE{{ '\n' }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|header|>{{ m.role }}<|end_header|>\n\n{{ m.content | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|end_header|>\n\n{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "<|user|>{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>WRITTEN</s>"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>PROMPT{% endif %}"
)
_AFTER_THOUGHT = "{{ m.content.split('</think>')[-1] }}"


def _harmony(message: Message) -> str:
    final = f"<|channel|>final<|message|>{content_of(message)}<|return|>"
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    return f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant{final}" if thought else final


def _bracket_calls(message: Message) -> str:
    calls = json.dumps([call["function"] for call in message.get("tool_calls") or []], ensure_ascii=False)
    return f"[CALLS] {calls}</s>" if message.get("tool_calls") else f" {content_of(message)}</s>"


FAMILIES = {
    "chatml": Family(chatml(), as_it_is("<|im_end|>")),
    "chatml that strips": Family(chatml("m.content | trim"), stripped("<|im_end|>")),
    "chatml with a default system prompt": Family(
        chatml(beginning="{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"),
        as_it_is("<|im_end|>"),
    ),
    "chatml without a generation prompt": Family(chatml(prompt=False), as_it_is("<|im_end|>"), never="no mask"),
    "chatml on one line": Family(
        chatml("m.content | replace('\n', ' ')"),
        lambda message: content_of(message).replace("\n", " ") + "<|im_end|>",
        loses=lambda message: any("\n" in text.strip() for text in re.split("</?think>", content_of(message))),
    ),
    "chatml with calls": Family(
        chatml("m.content or ''", calls=_CALLS, beginning=_TOOLS),
        lambda message: content_of(message) + calls_of(message) + "<|im_end|>",
        calls=True,
    ),
    "chatml blocks": Family(
        chatml_blocks("<|im_start|>assistant\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"),
        as_it_is("<|im_end|>"),
    ),
    "chatml blocks with the line break": Family(
        chatml_blocks(
            "<|im_start|>assistant\n"
            "{%- generation -%}{{ '\n' + m.content + '<|im_end|>\n' }}{%- endgeneration -%}"
        ),
        as_it_is("<|im_end|>"),
    ),
    "chatml blocks with the header": Family(
        chatml_blocks("{% generation %}<|im_start|>assistant\n{{ m.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"),
        as_it_is("<|im_end|>"),
    ),
    "chatml blocks without the end": Family(
        chatml_blocks("<|im_start|>assistant\n{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>{{ '\n' }}"),
        as_it_is("<|im_end|>"),
    ),
    "headers, as Llama 3": Family(_HEADERS, stripped("<|eot|>")),
    "headers with a call for an answer, as Llama 3.1": Family(
        _HEADERS.replace(
            "{{ m.content | trim }}",
            "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}{% endif %}",
        ).replace("{{ bos_token }}", "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"),
        lambda message: (
            json.dumps(message["tool_calls"][0]["function"], ensure_ascii=False)
            if message.get("tool_calls")
            else content_of(message).strip()
        )
        + "<|eot|>",
        calls=True,
        loses=lambda message: bool(message.get("tool_calls"))
        and (bool(content_of(message).strip()) or len(message["tool_calls"]) > 1),
    ),
    "brackets, as Mistral": Family(
        "{{ bos_token }}{% set first = namespace(text='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set first.text = m.content + '\n\n' %}"
        "{% elif m.role == 'user' %}[INST] {{ first.text + m.content }} [/INST]"
        "{% set first.text = '' %}{% elif m.role == 'tool' %}[RESULTS] {{ m.content | tojson }}[/RESULTS]"
        "{% elif m.tool_calls %}[CALLS] {{ m.tool_calls | map(attribute='function') | list | tojson }}</s>"
        "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no such role') }}{% endif %}"
        "{% endfor %}{% if tools %}{% endif %}",
        _bracket_calls,
        roles=PLAIN_ROLES | {"tool"},
        calls=True,
        loses=lambda message: bool(message.get("tool_calls")) and bool(content_of(message).strip()),
    ),
    "brackets with a beginning for each question": Family(
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>"
        "{% else %}{{ bos_token }}[{{ m.role }}] {{ m.content }} [/{{ m.role }}]{% endif %}{% endfor %}",
        as_it_is("</s>", " "),
    ),
    "turns of user and model, as Gemma": Family(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
        "{% for m in messages %}<start_of_turn>{{ {'user': 'user', 'assistant': 'model'}[m.role] }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        stripped("<end_of_turn>"),
        roles={"user", "assistant"},
    ),
    "a token at the end of the chat, as Phi": Family(
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        as_it_is("<|end|>"),
    ),
    "an end of turn for the last answer only": Family(
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }}{% if loop.last %}</s>{% endif %}"
        "{% else %}Q: {{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}",
        as_it_is("</s>"),
        rewrites=lambda messages, number: True,
    ),
    "thoughts dropped, as DeepSeek": Family(
        _DEEPSEEK.replace("WRITTEN", _AFTER_THOUGHT).replace("PROMPT", ""),
        lambda message: content_of(message).split("</think>")[-1] + "</s>",
        roles=PLAIN_ROLES,
        loses=loses_thought,
    ),
    "a thought in the prompt alone, as DeepSeek": Family(
        _DEEPSEEK.replace("WRITTEN", _AFTER_THOUGHT).replace("PROMPT", "<think>\n"),
        as_it_is(""),
        roles=PLAIN_ROLES,
        never="no mask",
    ),
    "a thought dropped once more follows, as Qwen 3": Family(
        _QWEN.replace("OPEN", "").replace("CLOSE", ""),
        with_thought,
        reasoning=True,
        calls=True,
        rewrites=forgets_thought,
    ),
    "a thought dropped once more follows, in blocks": Family(
        _QWEN.replace("OPEN", "{% generation %}").replace("CLOSE", "{% endgeneration %}"),
        with_thought,
        reasoning=True,
        calls=True,
        rewrites=forgets_thought,
    ),
    "channels, as gpt-oss": Family(
        "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking and loop.last %}"
        "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        _harmony,
        reasoning=True,
        rewrites=lambda messages, number: True,
    ),
    "plain text": Family(
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        as_it_is("\n\n"),
    ),
    "two beginnings": Family(
        chatml(beginning="{{ bos_token }}{{ bos_token }}"), as_it_is("<|im_end|>"), never="two BOS"
    ),
}  # fmt: skip
