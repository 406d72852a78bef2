"""``arctic generate``: text from a trained model, to see with one's own eyes what it learned."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arctic_huggingface.hub import found, no_pickles
from arctic_training.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

NO_TEXT = "give a causal language model with all of its weights: reward models and encoders write no text"
_STEP = re.compile(r"global_step_(\d+)")


@click.command(name="generate")
@click.argument("checkpoint")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="System message before the prompt.")
@click.option("--raw", is_flag=True, help="Give the model the prompt as it is, without the chat template.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens to write at most."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
    help="Sample from the likeliest tokens that together have this probability.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sampling.")
def command(
    checkpoint: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> None:
    """Write what the model in CHECKPOINT answers to PROMPT.

    CHECKPOINT is a folder that transformers loads, or the output_dir of a recipe's checkpoint, of which the newest is
    taken. Without PROMPT it is read from standard input.
    """
    if raw and system:
        raise UsageError("--system has no meaning with --raw", remedy="write the system message into the prompt")
    if top_p < 1 and not temperature:
        raise UsageError("--top-p has no meaning at temperature 0", remedy="set --temperature above 0")
    folder = find_model(Path(checkpoint))
    prompt = _prompt() if prompt is None else prompt
    _generate(
        folder,
        prompt,
        system=system,
        raw=raw,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )


def find_model(path: Path) -> Path:
    """The folder of a model: ``path`` itself, or the newest ``global_step_<n>`` in it.

    Raises:
        CheckpointError: there is none.
    """
    remedy = "give the output_dir of a checkpoint entry of type huggingface, or a folder that transformers loads"
    if not path.is_dir():
        raise CheckpointError("there is no such folder", where=str(path), remedy=remedy)
    if (path / "config.json").is_file():
        return path
    steps = {int(match[1]): child for child in path.iterdir() if (match := _STEP.fullmatch(child.name))}
    models = {step: child for step, child in steps.items() if (child / "config.json").is_file()}
    if models:
        return models[max(models)]
    found = "its checkpoints are of another kind" if steps else "there is no model in this folder"
    if steps or any(path.glob("*.pt")):
        found = "these are checkpoints to resume from, not exported models"
        remedy = "make a model of one with `arctic export CHECKPOINT OUT`"
    raise CheckpointError(found, where=str(path), remedy=remedy)


def _prompt() -> str:
    if sys.stdin.isatty():
        return click.prompt("Prompt", err=True)
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError("there is no prompt", remedy="give it after the checkpoint, or pipe it in")
    return text


def _generate(
    folder: Path,
    prompt: str,
    *,
    system: str | None,
    raw: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> None:
    import torch
    from transformers import GenerationConfig, TextStreamer

    model, tokenizer = _load(folder)
    click.echo(f"{folder}: {type(model).__name__}, {_count(model)} parameters, {model.dtype}", err=True)
    input_ids = _encode(tokenizer, prompt, system, raw).to(model.device)
    bound = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if bound is not None:
        room = bound - input_ids.shape[1]
        if room < 1:
            raise UsageError(f"the prompt has {input_ids.shape[1]} tokens and the model takes {bound}")
        max_new_tokens = min(max_new_tokens, room)
    # What the model's files say of sampling is left out: the options of this command decide alone.
    stop = model.generation_config.eos_token_id
    stop = stop if isinstance(stop, list) else [stop]
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=top_p if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=sorted({token for token in (*stop, tokenizer.eos_token_id) if token is not None}) or None,
        bos_token_id=model.generation_config.bos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
    model.generation_config = settings
    torch.manual_seed(seed)
    model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=settings,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )


def _load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from arctic_huggingface.adapters import ADAPTER_CONFIG, merged_model
    from arctic_huggingface.model import lacks, missing_weights

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    def refused(message: str, remedy: str) -> CheckpointError:
        return CheckpointError(message, remedy=remedy)

    trusted = getattr(click.get_current_context().obj, "trust", False)
    with found(f"model {str(folder)!r}", refused, "give the folder of a whole model"):
        if (folder / ADAPTER_CONFIG).is_file():
            model = merged_model(folder, trusted=trusted)
            if not model.can_generate():  # the class is that of the base in training, with a head of its own
                raise UsageError(f"{str(folder)!r} is an adapter of {type(model).__name__}", remedy=NO_TEXT)
        else:
            with no_pickles(str(folder), folder, refused):
                model, report = AutoModelForCausalLM.from_pretrained(
                    folder, dtype="auto", use_safetensors=None if trusted else True, output_loading_info=True
                )
            if missing := missing_weights(model, report):
                raise UsageError(lacks(str(folder), missing, model), remedy=NO_TEXT)
        model = model.to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, tokenizer


def _encode(tokenizer: Any, prompt: str, system: str | None, raw: bool) -> torch.Tensor:
    import torch

    if raw or not tokenizer.chat_template:
        if system:
            raise UsageError(
                "the model has no chat template, so it has no place for a system message", remedy="leave --system out"
            )
        return torch.tensor([tokenizer(prompt)["input_ids"]])
    messages = [{"role": "system", "content": system}] if system else []
    text = tokenizer.apply_chat_template(
        [*messages, {"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def _count(model: Any) -> str:
    number = sum(parameter.numel() for parameter in model.parameters())
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
