"""Loading under ZeRO-3: transformers partitions each weight while it is read, so no rank ever holds the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from arctic_deepspeed import ds_config, process
from arctic_deepspeed.engine import DeepSpeedEngine


@contextmanager
def partitioned_loading(model_config: Any, config: Any, run: Any) -> Iterator[None]:
    """Let ``from_pretrained`` know of ZeRO-3 while the model is built; nothing in any other case.

    Weights drawn at random are drawn whole, on every rank, and partitioned by the engine: so they are those that any
    other stage and engine starts from.

    Args:
        model_config: the architecture's configuration.
        config: the recipe's ``model`` section.
        run: the run.
    """
    is_ours = issubclass(run.engine_class, DeepSpeedEngine)
    if not is_ours or ds_config.zero_stage(run.config.deepspeed) != 3 or getattr(config, "init", "") != "pretrained":
        yield
        return
    if find_spec("transformers") is None or find_spec("accelerate") is None:
        run.warn("every rank loads the whole model before ZeRO-3 divides it: pip install accelerate avoids that")
        yield
        return
    deepspeed = process.import_without_compiling()
    # Before it has its own communication, which is made with the engine, DeepSpeed takes each rank for the only one.
    deepspeed.init_distributed(verbose=False)
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(ds_config.complete_for(run, model_config))
    try:
        yield
    finally:
        del alive  # transformers holds it by a weak reference: without it models are whole again
