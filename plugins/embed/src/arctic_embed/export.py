"""The files beside an exported encoder that make it a model of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_embed.data import EmbedDataConfig
from arctic_embed.model import EmbedModelConfig

if TYPE_CHECKING:
    from arctic_training.trainer import Trainer

MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
MODES = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


def write_modules(trainer: Trainer, checkpoint: Path) -> None:
    """Write them beside the model's configuration, wherever a checkpoint has that; rank 0 only."""
    folder = next((each for each in (checkpoint, checkpoint / "model") if (each / "config.json").is_file()), None)
    model, data = trainer.config.model, trainer.config.data
    if folder is None or trainer.global_rank or not isinstance(model, EmbedModelConfig):
        return
    prompts = (data.query_prefix, data.document_prefix) if isinstance(data, EmbedDataConfig) else ("", "")
    width = trainer.model_unwrapped.config.hidden_size
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(MODULES)
    ]
    _write(folder / "modules.json", modules)
    modes = {f"pooling_mode_{name}": mode == model.pooling for mode, name in MODES.items()}
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **modes, "include_prompt": True})
    (folder / "2_Normalize").mkdir()
    longest = trainer.run.component("data").max_length
    _write(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    named = dict(zip(("query", "document"), prompts, strict=True))
    content = {"prompts": named, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write(folder / "config_sentence_transformers.json", content)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
