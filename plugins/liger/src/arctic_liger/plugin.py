"""The hook implementations of the liger plugin."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from arctic_training.hookspecs import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.model("liger", "arctic_liger.model:LigerModelFactory")


@hookimpl
def arctic_configure(run: Any) -> None:
    """Where the kernels cannot run, the run ends before it has prepared anything."""
    if not run.only_prepares:
        from arctic_liger.kernels import refuse_other_devices

        refuse_other_devices(run)


@hookimpl(wrapper=True)
def arctic_build_model_config(config: Any, run: Any) -> Generator[None, Any, Any]:
    """An architecture that liger has no kernels for is told before data is prepared."""
    model_config = yield
    if getattr(config, "liger", False) and not run.only_prepares:
        from arctic_liger.kernels import refuse_other_architectures

        refuse_other_architectures(model_config, config, run)
    return model_config


@hookimpl(wrapper=True, trylast=True)
def arctic_build_model(model_config: Any, config: Any, run: Any) -> Generator[None, Any, Any]:
    """Put the kernels into the model that its factory built; what others wrap around it, such as adapters, comes
    after."""
    model = yield
    if getattr(config, "liger", False):
        from arctic_liger.kernels import put_into

        put_into(model, config, run)
    return model
