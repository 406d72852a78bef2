"""Frozen weights in 4 bits, by bitsandbytes: QLoRA (Dettmers et al., 2023, arXiv:2305.14314)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from arctic_huggingface.hub import refusal

if TYPE_CHECKING:
    import torch

WHERE = "model.quantization"


def quantized(config: Any, run: Any, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` is given so that it loads weights in 4 bits: NF4 with quantized scales, as in the paper,
    computed with in the precision of the recipe. Nothing where the recipe does not ask for it.

    Raises:
        RecipeError: bitsandbytes is not installed, or the weights would have to be divided by ZeRO-3.
    """
    if not config.quantization:
        return {}
    from transformers import BitsAndBytesConfig
    from transformers.integrations import is_deepspeed_zero3_enabled

    refused = refusal(run, WHERE)
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise refused("needs bitsandbytes and accelerate", "pip install bitsandbytes accelerate, or leave it out")
    if is_deepspeed_zero3_enabled():
        raise refused("ZeRO-3 cannot divide weights of 4 bits", "set deepspeed.zero_optimization.stage to 2 or less")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=config.torch_dtype,
    )
    return {"quantization_config": settings, "device_map": {"": str(device)}}


def keep_as_loaded(model: torch.nn.Module) -> None:
    """Let evaluation leave weights of 4 bits as they are: on some CPUs bitsandbytes would pack them anew at the first
    evaluation and round their scales, and what is trained after it would differ."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
