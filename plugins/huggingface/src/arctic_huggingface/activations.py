"""What a model keeps of its forward pass for backward: everything, its layers' inputs, or those in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedModel

CHECKPOINT = "_gradient_checkpointing_func"
"""Where each layer of transformers holds the function that it is checkpointed with."""


def checkpoint_activations(model: PreTrainedModel, *, offload: bool, device: torch.device) -> None:
    """Keep nothing but the input of each layer, and compute the rest again in backward (Chen et al., 2016,
    arXiv:1604.06174).

    Args:
        model: a model that supports it.
        offload: keep those inputs in host memory, pinned where ``device`` is an accelerator.
        device: where the model will run.
    """
    # The older name is deprecated where there is a newer one.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    if offload:
        for module in model.modules():
            if hasattr(module, CHECKPOINT):
                setattr(module, CHECKPOINT, _offloading(getattr(module, CHECKPOINT), device))


def _offloading(checkpoint: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    from torch.autograd.graph import save_on_cpu

    def call(*arguments: Any, **keys: Any) -> Any:
        # A checkpoint has hooks of its own inside: what these see is the layer's input alone.
        with save_on_cpu(pin_memory=device.type != "cpu", device_type=device.type):
            return checkpoint(*arguments, **keys)

    return call
