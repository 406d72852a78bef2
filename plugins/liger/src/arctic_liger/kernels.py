"""Liger's kernels: where they run, which architectures they are for, and how they get into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training.config import ComponentConfig, keys_of
from arctic_training.errors import ArcticError, PluginError, RecipeError

if TYPE_CHECKING:
    import torch

    from arctic_training.run import Run

DEVICES = ("cuda", "npu", "xpu")
"""What Triton, in which the kernels are written, compiles for."""
WITHOUT = "leave it out: without the kernels the model computes the same, more slowly"


def refuse_other_devices(run: Run) -> None:
    """End a run whose recipe asks for the kernels where they cannot run.

    Raises:
        RecipeError: names the device, and the key that asks.
    """
    if run.device.type in DEVICES:
        return
    for info in keys_of(type(run.config)):
        section = getattr(run.config, info.name)
        if isinstance(section, ComponentConfig) and section.kind == "model" and getattr(section, "liger", False):
            raise _refusal(
                section,
                run,
                f"liger's kernels run on {', '.join(DEVICES)}, and this run is on {run.device.type}",
                f"start it where there is an accelerator, or {WITHOUT}",
                name=info.name,
            )


def refuse_other_architectures(model_config: Any, section: Any, run: Run) -> None:
    """End a run on a model that liger would leave as it is.

    Raises:
        RecipeError: names the architecture.
        PluginError: liger-kernel cannot be imported.
    """
    model_type = getattr(model_config, "model_type", None)
    if model_type not in _library().MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise _refusal(section, run, f"liger has no kernels for models of the type {model_type!r}", WITHOUT)


def put_into(model: torch.nn.Module, section: Any, run: Run) -> None:
    """Put the kernels for norms, rotary embeddings and gated MLPs into a model (Hsu et al., 2024, arXiv:2410.10989).

    The fused linear cross entropy is left out: the loss is a stage of its own here, and is given logits.

    Raises:
        RecipeError: names the architecture, where liger has nothing for it.
    """
    refuse_other_architectures(getattr(model, "config", None), section, run)
    # The name has an underscore, and is the one by which transformers calls liger too.
    _library()._apply_liger_kernel_to_instance(model, fused_linear_cross_entropy=False)
    run.say(f"model: {type(model).__name__} computes norms, rotary embeddings and MLPs with liger's kernels")


def _refusal(section: Any, run: Run, message: str, remedy: str, name: str = "model") -> ArcticError:
    key = "type" if section.type == "liger" else "liger"
    return RecipeError(run.config.recipe.problem((name, key), message, remedy=remedy))


def _library() -> Any:
    try:
        from liger_kernel.transformers import monkey_patch
    except ImportError as error:
        raise PluginError(
            f"liger-kernel cannot be imported: {error}", remedy="pip install 'arctic-plugin-liger[kernels]'"
        ) from error
    return monkey_patch
