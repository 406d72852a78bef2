"""What this plugin offers to a run: names and hook implementations; the libraries are imported when they are used."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_training.hookspecs import hookimpl

if TYPE_CHECKING:
    from arctic_training.checkpoint import CheckpointEngine
    from arctic_training.config import KeyProblem
    from arctic_training.registry import Components
    from arctic_training.trainer import Trainer


@hookimpl
def arctic_register_components(components: Components) -> None:
    components.model("huggingface", "arctic_huggingface.model:HFModelFactory")
    components.tokenizer("huggingface", "arctic_huggingface.tokenizer:HFTokenizerFactory")
    components.data_source("huggingface", "arctic_huggingface.source:HFDataSource")
    components.data_source("huggingface_instruct", "arctic_huggingface.source:HFInstructDataSource")
    components.data_source("huggingface_preference", "arctic_huggingface.task_sources:HFPreferenceDataSource")
    components.data_source("huggingface_labelled", "arctic_huggingface.task_sources:HFLabelledDataSource")
    components.data_source("huggingface_pairs", "arctic_huggingface.task_sources:HFPairsDataSource")
    components.scheduler("huggingface", "arctic_huggingface.scheduler:HFSchedulerFactory")
    components.checkpoint("huggingface", "arctic_huggingface.checkpoint:HFCheckpointEngine")


@hookimpl
def arctic_check_recipe(config: Any) -> Iterable[KeyProblem]:
    from arctic_huggingface.companions import problems_of_training

    return list(problems_of_training(config))


@hookimpl
def arctic_train_start(trainer: Trainer) -> None:
    from arctic_huggingface.attention import check_packing
    from arctic_huggingface.vocabulary import check_vocabulary, warn_of_untrained_tokens

    check_vocabulary(trainer)
    warn_of_untrained_tokens(trainer)
    check_packing(trainer)


@hookimpl
def arctic_write_checkpoint(path: str, engine: CheckpointEngine, trainer: Trainer) -> None:
    if engine.resumes and trainer.global_rank == 0:
        from arctic_huggingface.model_files import add_to_checkpoint

        add_to_checkpoint(trainer, Path(path))


@hookimpl
def arctic_checkpoint_state(trainer: Trainer) -> dict[str, Any] | None:
    """The last evaluations, for the model cards of a run that goes on and does not evaluate again."""
    return {"evaluations": trainer.run.last_evaluation} if trainer.run.last_evaluation else None


@hookimpl
def arctic_after_load(path: str, state: dict[str, Any], trainer: Trainer) -> None:
    trainer.run.last_evaluation |= state.get("huggingface", {}).get("evaluations", {})
