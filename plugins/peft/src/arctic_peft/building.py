"""Puts an adapter on a model: the base is frozen, what peft adds is trained.

Wherever a model is built anew the same adapter comes of it, since it is drawn with the recipe's seed: so what an
adapter changes of its base when it begins (PiSSA, OLoRA) need not be kept either.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arctic_huggingface.adapters import without_deprecations
from arctic_huggingface.hub import refusal
from arctic_peft import targets
from arctic_peft.section import KEY, adapted_sections, kind_and_keys
from arctic_training.adapters import Adapter, fingerprint, set_adapter
from arctic_training.recipe import dotted

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel

TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "AutoModel": "FEATURE_EXTRACTION",
}
"""What a model is for, by how the names of transformers' classes end."""


def peft_config_of(section: Any, path: tuple, run: Any, model: Any = None) -> PeftConfig:
    """The adapter that a section asks for, for the task of the model, or of what will build one.

    Raises:
        RecipeError: peft's config class refuses it, or its task is another; names the section.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind, keys = kind_and_keys(getattr(section, KEY))
    with _explained((*path, KEY), run):
        adapter = PEFT_TYPE_TO_CONFIG_MAPPING[kind](**keys)
    what, task = _built_by(section) if model is None else (type(model).__name__, _task_of(model))
    if None not in (task, adapter.task_type) and task != adapter.task_type:
        message = f"{what} is for {task}, not for {adapter.task_type}"
        raise refusal(run, dotted((*path, KEY, "task_type")))(message, "leave it out: the model's class tells it")
    adapter.task_type = adapter.task_type or task
    return adapter


def adapted(model: torch.nn.Module, section: Any, run: Any) -> PeftModel:
    """The model with the adapter of its section, on which nothing else is trained.

    Args:
        model: the base; it is changed.
        section: the section of the recipe that it was built from.
        run: the run.

    Raises:
        RecipeError: the adapter names layers that the model does not have, or peft refuses it.
    """
    from peft import get_peft_model
    from peft.utils.integrations import gather_params_ctx

    path = next((path for path, other in adapted_sections(run.config) if other is section), ("model",))
    _, keys = kind_and_keys(getattr(section, KEY))
    for where, message, remedy in targets.missing(keys, model):
        raise refusal(run, dotted((*path, KEY, *where)))(message, remedy)
    peft_config = peft_config_of(section, path, run, model)
    heads = ("classifier", "score") if peft_config.task_type == "SEQ_CLS" else ()  # peft trains these anew
    mark = fingerprint(model, [*(getattr(peft_config, "modules_to_save", None) or ()), *heads], gather_params_ctx)
    with _explained((*path, KEY), run), _seeded(run), without_deprecations():
        # Adapters have the precision of the model, and master weights of the engine like all that is trained.
        result = get_peft_model(model, peft_config, revision=_revision(section, model), autocast_adapter_dtype=False)
    peft_config.base_model_name_or_path = getattr(model, "name_or_path", None) or section.name_or_path
    set_adapter(
        result,
        Adapter(
            base=str(section.name_or_path),
            revision=_revision(section, model),
            precision=section.precision,
            fingerprint=mark,
            config=_as_saved(peft_config),
            names=_published_names(result),
            new_rows=getattr(model, "new_rows", ()),
        ),
    )
    # In place of a parameter ZeRO-3 leaves an empty tensor.
    numbers = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in result.parameters()]
    whole, trained = sum(size for size, _ in numbers), sum(size for size, is_trained in numbers if is_trained)
    run.say(f"{dotted(path)}: {peft_config.peft_type.value}, {trained:,} of {whole:,} parameters trained "
            f"({100 * trained / whole:.2f} %)")  # fmt: skip
    return result


def _built_by(section: Any) -> tuple[str, str | None]:
    """The class of transformers that builds the model of a section, and its task; of others nothing is known yet."""
    factory = next((base for base in section.component.__mro__ if "create_model" in vars(base)), object)
    name = vars(factory).get("auto_class", "")
    return name, next((task for ending, task in TASKS.items() if name.endswith(ending)), None)


def _task_of(model: Any) -> str | None:
    """What peft calls the task that a class of transformers is for; None where its name does not tell."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    tasks = (task for base in type(model).__mro__ for ending, task in TASKS.items() if base.__name__.endswith(ending))
    task = next(tasks, "FEATURE_EXTRACTION" if model.base_model is model else None)
    return "CAUSAL_LM" if task == "SEQ_2_SEQ_LM" and not model.config.is_encoder_decoder else task


def _revision(section: Any, model: Any) -> str | None:
    return getattr(getattr(model, "config", None), "_commit_hash", None) or getattr(section, "revision", None)


def _as_saved(peft_config: PeftConfig) -> dict[str, Any]:
    """The content of ``adapter_config.json``, as peft writes it for use after training."""
    config = copy.copy(peft_config)
    config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        content = json.loads((Path(folder) / "adapter_config.json").read_text())
    return {name: sorted(value) if name == "target_modules" and isinstance(value, list) else value
            for name, value in content.items()}  # fmt: skip


def _published_names(model: PeftModel) -> dict[str, str]:
    """From names in the model's state to those in peft's own files, which hold the same tensors."""
    from peft import get_peft_model_state_dict

    state = model.state_dict(keep_vars=True)
    names_of: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names_of.setdefault(id(tensor), []).append(name)
    # Embeddings that are trained stand under modules_to_save; those of the base belong to the base.
    chosen = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return {names_of[id(tensor)].pop(0): name for name, tensor in chosen.items() if names_of.get(id(tensor))}


@contextmanager
def _seeded(run: Any) -> Iterator[None]:
    """Draw the same numbers wherever and whenever a model is built, and leave those of the run as they were."""
    import torch

    devices = [run.device] if run.device.type != "cpu" else []
    with torch.random.fork_rng(devices, device_type=run.device.type if devices else "cuda"):
        torch.manual_seed(run.config.seed)
        yield


@contextmanager
def _explained(path: tuple, run: Any) -> Iterator[None]:
    """Give what peft refuses its place in the recipe."""
    try:
        yield
    except (ValueError, TypeError, KeyError, NotImplementedError, ImportError, AttributeError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise refusal(run, dotted(path))(f"peft refuses it: {reason}", "the log has the whole of it") from error
