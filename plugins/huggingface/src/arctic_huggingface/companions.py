"""Models that stand beside the one that is trained, such as a teacher: whether they fit it, and what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.hub import local_path, refusal
from arctic_huggingface.tokenizer import HFTokenizerConfig, HFTokenizerFactory
from arctic_training.cache_key import options_of
from arctic_training.config import KeyProblem, walk
from arctic_training.errors import ArcticError
from arctic_training.model import ModelConfig
from arctic_training.wording import counted

if TYPE_CHECKING:
    from arctic_training.run import Run
    from arctic_training.trainer_config import TrainerConfig

OF_TRAINING = ("freeze", "train_only", "peft_config")


def problems_of_training(config: TrainerConfig) -> Iterator[KeyProblem]:
    """What cannot be trained as a recipe says, and keys that say it of models that are not trained."""
    for path, _, section in walk(config):
        if not isinstance(section, ModelConfig):
            continue
        if path == ("model",):
            if getattr(section, "quantization", None) and not getattr(section, "peft_config", None):
                message = "weights in 4 bits cannot be trained: it needs peft_config"
                yield KeyProblem((*path, "quantization"), message, of="key")
            continue
        for name in OF_TRAINING:
            if getattr(section, name, None):
                message = f"has no effect: the {path[-1]} is not trained"
                yield KeyProblem((*path, name), message, of="key", remedy="leave it out")


def fitting_architecture(run: Run, section: ModelConfig) -> Any:
    """The architecture of a companion that reads the same rows and predicts the same words as the model of the run.

    Tokenizers are held against each other word by word. One model may have more words at its end than the other, as
    long as the tokenizer knows none of them: vocabularies are padded. Loads no weights.

    Args:
        run: a run whose tokenizer and architecture are built.
        section: a section of the recipe like ``model``.

    Raises:
        RecipeError: names the first word that differs, or the sizes.
    """
    who, where = section_name(section), f"{section_name(section)}.name_or_path"
    architecture = run.plugins.ask("arctic_build_model_config", object, config=section, run=run)
    _refuse_other_words(run, section, who)
    needed = max(_vocabulary(run.trainer.tokenizer).values(), default=-1) + 1
    for name, sizes in ((who, architecture), ("model", run.model_config)):
        if (words := num_words(sizes)) is not None and words < needed:
            raise refusal(run, where)(
                f"the {name} predicts {words} words, and the tokenizer has {needed}",
                f"name a {who} with the vocabulary of the model; only unused words at its end may be more or fewer",
            )
    longest, rows = run.component_of(section).max_length(architecture), run.component("data").max_length
    if longest is not None and longest < rows:
        raise refusal(run, where)(
            f"the {who} takes at most {longest} tokens, and rows have up to {rows}",
            f"set data.max_length to {longest} or less",
        )
    return architecture


def check_layer_pairs(run: Run, key: str, pairs: Sequence[tuple[int, int]], who: str, architecture: Any) -> None:
    """Refuse layers that do not exist, or whose hidden states are of different widths.

    Args:
        run: a run whose architecture is built.
        key: what gives the pairs.
        pairs: layers of the model, each with one of the companion; 0 is the embeddings.
        who: the companion in a word, such as teacher.
        architecture: that of the companion.

    Raises:
        RecipeError: names the layer, or the widths.
    """
    own, theirs = text_part(run.model_config), text_part(architecture)
    for own_layer, their_layer in pairs:
        for whose, layer, last in (
            ("model", own_layer, own.num_hidden_layers),
            (who, their_layer, theirs.num_hidden_layers),
        ):
            if not 0 <= layer <= last:
                raise refusal(run, key)(
                    f"there is no layer {layer} in the {whose}", f"give 0, the embeddings, to {last}"
                )
    if pairs and own.hidden_size != theirs.hidden_size:
        raise refusal(run, key)(
            f"hidden states have {own.hidden_size} numbers in the model and {theirs.hidden_size} in the {who}",
            f"leave {key} out, or take two models that are equally wide",
        )


def section_name(section: ModelConfig) -> str:
    """The key of the recipe that holds a section, such as ``teacher``."""
    return ".".join(map(str, section.section_path)) or "model"


def num_words(architecture: Any) -> int | None:
    """How many words a model predicts; None where its configuration does not say."""
    return getattr(text_part(architecture), "vocab_size", None)


def text_part(architecture: Any) -> Any:
    """The part of an architecture that text goes through: all of it, but where there are images and sounds too."""
    return architecture.get_text_config() if hasattr(architecture, "get_text_config") else architecture


def identity(run: Run, section: ModelConfig) -> dict[str, Any] | None:
    """All that the predictions of a model depend on, for ``DataFactory.fingerprint_parts``: its section, and the
    content of its files or its commit on the hub. None where the content cannot be known."""
    parts: dict[str, Any] = {"section": options_of(section, {"name_or_path", "revision", "save_name"})}
    parts["seed"] = run.config.seed if getattr(section, "init", "") == "random" else None
    folder = local_path(section.name_or_path, run, refusal(run, f"{section_name(section)}.name_or_path"))
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        return parts | {"files": {path.name: _sha256(path) for path in files}}
    architecture = run.plugins.ask("arctic_build_model_config", object, config=section, run=run)
    commit = getattr(architecture, "_commit_hash", None)
    return parts | {"commit": commit} if commit else None


def _refuse_other_words(run: Run, section: ModelConfig, who: str) -> None:
    options: dict[str, Any] = {name: getattr(section, name, None) for name in ("revision", "trust_remote_code")}
    theirs_section = HFTokenizerConfig(name_or_path=section.name_or_path, **options)
    try:
        theirs = _vocabulary(HFTokenizerFactory(theirs_section, run).create_tokenizer())
    except ArcticError:
        run.warn(f"{who}: it comes without a tokenizer, so that only the sizes of both vocabularies are compared")
        return
    own, padding = _vocabulary(run.trainer.tokenizer), getattr(run.trainer.tokenizer, "pad_token", None)
    different = [word for word in own.keys() | theirs.keys() if own.get(word) != theirs.get(word) and word != padding]
    if different:
        word = min(different, key=lambda word: (own.get(word, theirs.get(word, 0)), word))
        raise refusal(run, f"{who}.name_or_path")(
            f"the {who} has another vocabulary: it differs in {counted(len(different), 'word')}, the first is "
            f"{word!r}, {own.get(word, 'none')} of the model and {theirs.get(word, 'none')} of the {who}",
            f"name a {who} whose tokenizer is the model's",
        )


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
