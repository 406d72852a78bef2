"""An adapter's folder merged into its base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arctic_training.errors import CheckpointError

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"


def merged(model: torch.nn.Module, folder: str) -> torch.nn.Module:
    """The base model with the adapter in its weights.

    Args:
        model: the base model; it is changed.
        folder: the adapter in peft's form, as safetensors.

    Raises:
        CheckpointError: there are no safetensors, they do not fill the adapter, or adapters of this kind cannot be
            merged.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (Path(folder) / WEIGHTS).is_file():
        raise CheckpointError(
            f"there is no {WEIGHTS}, and weights of another form are not read",
            where=folder,
            remedy="use an adapter with safetensors",
        )
    config = PeftConfig.from_pretrained(folder)
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        report = set_peft_model_state_dict(adapted, load_file(Path(folder) / WEIGHTS))
        if report.unexpected_keys:
            raise ValueError(f"the base has no place for {report.unexpected_keys[0]}")
        return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, RuntimeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the {config.peft_type.value} adapter cannot be merged: {reason}",
            where=folder,
            remedy="export it without --merge, and load it with peft beside its base model",
        ) from error
