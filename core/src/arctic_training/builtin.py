"""Core's own plugin: the components that need nothing but torch, and the last answer to every build hook.

These implementations make what the recipe selected by name; they run last, so any plugin can answer before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arctic_training.hookspecs import hookimpl

if TYPE_CHECKING:
    from arctic_training.registry import Components

DEFAULT_TYPES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("huggingface",),
    "model": ("huggingface",),
    "loss": ("cross_entropy",),
    "optimizer": ("fused_adam", "adamw"),
    "scheduler": ("huggingface", "constant"),
    "launcher": ("deepspeed",),
}
"""What an omitted ``type`` means where the trainer leaves it open: the first of these names that is registered."""


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.engine("torch", "arctic_training.torch_engine:TorchEngine")
    components.checkpoint("torch", "arctic_training.checkpoint:EngineCheckpoint")
    components.loss("cross_entropy", "arctic_training.loss:CrossEntropyFactory")
    components.optimizer("adamw", "arctic_training.optimizer:AdamWFactory")
    components.scheduler("constant", "arctic_training.scheduler:ConstantSchedulerFactory")


@hookimpl(trylast=True)
def arctic_build_trainer(run: Any) -> Any:
    return run.config.trainer_class(run.config, run)


@hookimpl(trylast=True)
def arctic_build_tokenizer(config: Any, run: Any) -> Any:
    return run.component("tokenizer").create_tokenizer()


@hookimpl(trylast=True)
def arctic_build_model_config(config: Any, run: Any) -> Any:
    return run.component_of(config).create_config()


@hookimpl(trylast=True)
def arctic_load_data(config: Any, split: str, run: Any) -> Any:
    return run.make(config).load(config, config.split)


@hookimpl(trylast=True)
def arctic_prepare_data(datasets: list[Any], tokenizer: Any, split: str, config: Any, run: Any) -> Any:
    return run.component("data").prepare(datasets, split)


@hookimpl(trylast=True)
def arctic_build_dataloader(dataset: Any, split: str, config: Any, run: Any) -> Any:
    factory = run.component("data")
    return factory.create_stream() if dataset is None else factory.create_dataloader(dataset, split)


@hookimpl(trylast=True)
def arctic_build_model(model_config: Any, config: Any, run: Any) -> Any:
    return run.component_of(config).create_model(model_config)


@hookimpl(trylast=True)
def arctic_build_loss(config: Any, run: Any) -> Any:
    return run.component("loss").create_loss()


@hookimpl(trylast=True)
def arctic_compute_loss(batch: Any, trainer: Any) -> Any:
    return trainer.loss(batch)


@hookimpl(trylast=True)
def arctic_build_optimizer(model: Any, config: Any, run: Any) -> Any:
    return run.component("optimizer").create_optimizer(model)


@hookimpl(trylast=True)
def arctic_build_scheduler(optimizer: Any, config: Any, run: Any) -> Any:
    return run.component("scheduler").create_scheduler(optimizer)


@hookimpl(trylast=True)
def arctic_build_engine(model: Any, optimizer: Any, scheduler: Any, run: Any) -> Any:
    engine = run.engine_class(run.engine_config, run)
    engine.prepare(model, optimizer, scheduler)
    return engine


@hookimpl(trylast=True)
def arctic_build_checkpoint_engine(config: Any, run: Any) -> Any:
    if config.component is None:
        checkpoint_class = run.plugins.registry.get("checkpoint", run.engine_class.checkpoint_type)
        return checkpoint_class(config, run)
    return run.make(config)
