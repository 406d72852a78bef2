"""What plain transformers makes of a configuration, held against the model that was trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from arctic_huggingface.layout import Layout
from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def plain_model(folder: Path, layout: Layout, say: Callable[[str], None]) -> Any:
    """The model that transformers makes of a folder's configuration, without weights.

    Args:
        folder: holds ``config.json``.
        layout: of the model that was trained.
        say: is told when plain transformers makes another model than was trained.

    Returns:
        The model; None where it is another, or one whose code came with it: that is not run here.

    Raises:
        CheckpointError: it has a weight of another shape, which could not be loaded.
    """
    model = _without_content(folder)
    if model is None:
        return None
    shapes = Layout.of(model).shapes
    for name in shapes.keys() & layout.entries.keys():
        trained = layout.entries[name].shape
        if shapes[name] != trained:
            raise CheckpointError(
                f"{name!r} has the shape {list(trained)}, and {list(shapes[name])} by the model's configuration",
                where=str(folder),
                remedy="where the model's shape is changed, change its configuration too: resize_token_embeddings does",
            )
    others = sorted(shapes.keys() ^ layout.entries.keys())
    if not others:
        return model
    say(
        f"warning: {type(model).__name__} of plain transformers has other weights than the model that was trained, "
        f"such as {others[0]!r}; load it with the class that it was trained with"
    )
    return None


def _without_content(folder: Path) -> Any:
    import torch
    import transformers

    if "auto_map" in json.loads((folder / "config.json").read_text()):
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        own = getattr(transformers, next(iter(config.architectures or ()), ""), None)
        with torch.device("meta"):
            return own(config) if own else transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError):  # a kind of model that transformers does not know
        return None
