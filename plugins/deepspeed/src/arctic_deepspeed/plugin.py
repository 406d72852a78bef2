"""The hook implementations of the DeepSpeed plugin."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from arctic_training.hookspecs import hookimpl

if TYPE_CHECKING:
    from arctic_training.config import Config
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.engine("deepspeed", "arctic_deepspeed.engine:DeepSpeedEngine")
    components.checkpoint("deepspeed", "arctic_deepspeed.checkpoint:DSCheckpointEngine")
    components.optimizer("fused_adam", "arctic_deepspeed.optimizer:FusedAdamFactory")
    components.optimizer("cpu_adam", "arctic_deepspeed.optimizer:CPUAdamFactory")
    components.launcher("deepspeed", "arctic_deepspeed.launcher:DeepSpeedLauncher")


@hookimpl
def arctic_register_config_sections() -> dict[str, type[Config]]:
    from arctic_deepspeed.section import DeepSpeedSection

    return {"deepspeed": DeepSpeedSection}


@hookimpl
def arctic_unconfigure(run: Any) -> None:
    from arctic_deepspeed import process

    process.restore(run)


@hookimpl(wrapper=True, tryfirst=True)  # around all that touches the weights, such as adapters
def arctic_build_model(model_config: Any, config: Any, run: Any) -> Generator[None, Any, Any]:
    """Under ZeRO-3 pretrained weights are read straight into the shards of the ranks."""
    from arctic_deepspeed.partitioned import partitioned_loading

    with partitioned_loading(model_config, config, run):
        return (yield)
