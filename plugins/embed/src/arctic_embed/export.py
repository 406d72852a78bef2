"""The files beside an exported encoder that make it a model of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arctic_training.trainer import Trainer

MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
MODES = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}


def write_modules(trainer: Trainer, checkpoint: Path) -> None:
    """Write them beside the model's configuration, wherever a checkpoint has that; rank 0 only."""
    folder = next((each for each in (checkpoint, checkpoint / "model") if (each / "config.json").is_file()), None)
    pooling = getattr(trainer.config.model, "pooling", None)
    if folder is None or pooling is None or trainer.global_rank:
        return
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(MODULES)
    ]
    modes = {f"pooling_mode_{name}": mode == pooling for mode, name in MODES.items()}
    width = trainer.model_unwrapped.config.hidden_size
    prompts = {name: getattr(trainer.config.data, f"{name}_prefix", "") for name in ("query", "document")}
    longest = trainer.run.component("data").max_length
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **modes, "include_prompt": True})
    (folder / "2_Normalize").mkdir()
    _write(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": "cosine"})


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
