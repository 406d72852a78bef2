"""All that a model's folder holds beside its weights: configuration, generation settings, tokenizer, code, card."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

from arctic_huggingface import adapters
from arctic_huggingface.card import model_card
from arctic_huggingface.layout import Layout
from arctic_training.adapters import adapter_of
from arctic_training.redaction import redact

if TYPE_CHECKING:
    from pathlib import Path

    from arctic_training.trainer import Trainer

FOLDER = "model"
"""Where a checkpoint that training can go on from has these files, so that a model can be made of it later."""
LAYOUT_FILE = "layout.json"
CARD_FILE = "README.md"


def write_model_files(trainer: Trainer, directory: Path) -> None:
    """Write them into an existing directory; rank 0 only."""
    model = trainer.model_unwrapped
    adapter = adapter_of(model)
    if adapter is not None:
        adapters.write_description(adapter, directory)
    write_configuration(adapters.base_of(model), directory, getattr(trainer.config.model, "save_name", None))
    trainer.tokenizer.save_pretrained(directory)
    (directory / CARD_FILE).write_text(redact(model_card(trainer)), encoding="utf-8")


def add_to_checkpoint(trainer: Trainer, checkpoint: Path) -> None:
    """Put them into a checkpoint that training can go on from, with the layout of its weights; rank 0 only.

    Where they cannot be written, for another reason than the disk, the checkpoint is as good to go on from: that is
    said, and the checkpoint cannot be exported.
    """
    model, tokenizer = trainer.model_unwrapped, trainer.tokenizer
    if not (hasattr(getattr(model, "config", None), "save_pretrained") and hasattr(tokenizer, "save_pretrained")):
        return
    directory = checkpoint / FOLDER
    directory.mkdir()
    try:
        Layout.of(model).write(directory / LAYOUT_FILE)
        write_model_files(trainer, directory)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - training goes on, whatever a model's own code raises
        reason = next(iter(str(error).splitlines()), "")
        trainer.run.warn(f"checkpoint: it cannot be exported: {type(error).__name__}: {reason}")
        (directory / LAYOUT_FILE).unlink(missing_ok=True)


def write_configuration(model: Any, directory: Path, save_name: str | None = None) -> None:
    """Write the configuration of a model and what belongs to it: generation settings, code that came with it."""
    config = copy.deepcopy(model.config)
    for name, value in getattr(model, "config_as_loaded", {}).items():
        setattr(config, name, value)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(directory)
    if save_name:
        path = directory / "config.json"
        content = {"_name_or_path": save_name, **json.loads(path.read_text())}
        path.write_text(json.dumps(content, indent=2) + "\n")
    if getattr(model, "generation_config", None) is not None and model.can_generate():
        # Not save_pretrained: it refuses contradictory settings that published models do come with.
        model.generation_config.to_json_file(directory / "generation_config.json")
    if getattr(model, "_auto_class", None) is not None:
        from transformers.dynamic_module_utils import custom_object_save

        custom_object_save(model, directory, config=config)
