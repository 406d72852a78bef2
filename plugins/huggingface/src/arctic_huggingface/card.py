"""The model card: what a model is, what it was trained on and how well it did, for whoever finds its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.adapters import base_of
from arctic_training import __version__
from arctic_training.adapters import adapter_of

if TYPE_CHECKING:
    from arctic_training.trainer import Trainer

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FIGURES = ("step", "loss", "rows", "tokens", "trained_tokens")
"""Of an evaluation, in this order; others follow."""
PIPELINES = {"ForCausalLM": "text-generation", "LMHeadModel": "text-generation",
             "ForSequenceClassification": "text-classification"}  # fmt: skip
"""What the hub calls the use of a model, by how its class ends; one without a head gives features."""
NO_FIGURES = ("kind", "name", "seconds", "sets", "loss_weight")


def model_card(trainer: Trainer) -> str:
    """The text of ``README.md``: what the model comes from, results, fingerprints of the data, the resolved recipe."""
    from arctic_training.dump import dump

    run, config, state = trainer.run, trainer.config, trainer.state
    base = str(config.model.name_or_path)
    name = getattr(config.model, "save_name", None) or f"{Path(base).name}, trained by {config.type}"
    adapter = adapter_of(trainer.model_unwrapped)
    kind = type(base_of(trainer.model_unwrapped)).__name__
    pipeline = next((use for ending, use in PIPELINES.items() if kind.endswith(ending)), "feature-extraction")
    units = trainer.units_of_loss()
    loss = "in nats per trained token" if units == "trained tokens" else f"of `{config.type}`, a mean over {units}"
    if adapter is not None:
        kind = f"{adapter.config['peft_type']} adapter beside {kind} `{base}`"
    what = f"{kind} after {state.step:,} optimizer steps of `{config.type}`"
    lines = [
        *_front_matter(base, config, pipeline),
        *("", f"# {name}", ""),
        f"{what} on {state.tokens:,} tokens, {state.trained_tokens:,} of them trained on.",
        f"Trained with Arctic {__version__}.",
        *("", "## Results", ""),
        *_results(run.last_evaluation.values(), loss),
        *("", "## Data", ""),
        *_data(run.data_facts),
        *("", f"Fingerprint of the tokenizer: `{run.tokenizer_sha256}`."),
        *("", "## Recipe", "", "```yaml"),
        *dump(config).splitlines(),
        *("```", "", "## Plugins", ""),
        *(f"- {plugin}" for plugin in run.fingerprint),
    ]
    return "\n".join(lines) + "\n"


def _front_matter(base: str, config: Any, pipeline: str) -> Iterator[str]:
    """What the hub reads. A folder of somebody's machine means nothing there."""
    yield "---"
    yield f"library_name: {'peft' if getattr(config.model, 'peft_config', None) else 'transformers'}"
    yield f"pipeline_tag: {pipeline}"
    is_pretrained = getattr(config.model, "init", "pretrained") == "pretrained"
    if is_pretrained and HUB_NAME.fullmatch(base) and not Path(base).exists():
        yield f"base_model: {json.dumps(base)}"
    yield f"tags: {json.dumps(['arctic', config.type])}"
    yield "---"


def _results(evaluations: Iterable[dict[str, Any]], loss: str) -> list[str]:
    records = list(evaluations)
    if not records:
        return ["Not evaluated."]
    others = sorted({name for record in records for name in record} - {*FIGURES, *NO_FIGURES})
    names = [*FIGURES, *others]
    rows = [[record["name"], *(_shown(record.get(name)) for name in names)] for record in records]
    return [f"The loss is {loss}.", "", *_table(["set", *names], rows)]


def _data(facts: dict[str, dict[str, Any]]) -> list[str]:
    names = ("rows", "documents", "tokens", "trained_tokens")
    rows = [
        [name, *(_shown(fact.get(figure)) for figure in names), f"`{fact['cache']}`" if fact.get("cache") else "-"]
        for name, fact in facts.items()
    ]
    streamed = [] if "train" in facts else ["The training data was streamed: it has no fingerprint.", ""]
    note = ["", "A fingerprint stands for the content of the sources and for all that made rows of them."]
    return [*streamed, *(_table(["set", *names, "fingerprint"], rows) + note if rows else [])]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (header, *rows)]
    return [body[0], "|" + "---|" * len(header), *body[1:]]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("_tokens", " tokens")


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else "-" if value is None else str(value)
