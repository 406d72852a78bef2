"""Who a policy is held against: a model of its own, the policy without its adapter, or what was found beforehand.

For objectives whose recipe has ``ref_model``, and perhaps ``precompute_reference``.

Shapes: D documents of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from arctic_huggingface.hub import refusal
from arctic_huggingface.tokenizer import HFTokenizerConfig, HFTokenizerFactory
from arctic_training.documents import document_log_probabilities
from arctic_training.errors import RecipeError
from arctic_training.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from arctic_training.run import Run
    from arctic_training.trainer import Trainer

Reference = Callable[[Any], "torch.Tensor"]
"""From a micro-batch to log p(labels | tokens before them) of each document, in nats, float64 of shape (D,)."""
REMEDY = "name the model that training starts from, or one of its family"


def make_reference(trainer: Trainer) -> Reference:
    """The reference that a recipe asks for, with ``ref_model``, and perhaps ``precompute_reference``, among its keys.

    Called by ``Trainer.prepare``, on every rank, before a checkpoint is loaded.

    Raises:
        RecipeError: the reference has another vocabulary than the policy, or the recipe names none and the policy has
            no adapter to switch off.
    """
    config: Any = trainer.config
    if not getattr(config, "precompute_reference", False):
        return _asked(trainer, may_be_policy=False)
    from arctic_huggingface.reference_cache import add_reference, from_columns

    made: list[Reference] = []

    def ask(batch: Any) -> torch.Tensor:
        made[:] = made or [_asked(trainer, may_be_policy=True)]
        return made[0](batch)

    for loader in (trainer.train_dataloader, *trainer.eval_dataloaders.values()):
        add_reference(trainer.run, loader, ask)
    return from_columns


def disable_dropout(trainer: Trainer) -> None:
    """Set every probability of dropout in the model to 0, those of modules and those that attention reads by itself."""
    changed = []
    for module in trainer.model_unwrapped.modules():
        is_dropout = "dropout" in type(module).__name__.lower()
        for name, value in vars(module).items():
            if isinstance(value, float) and value and ("drop" in name or (is_dropout and name == "p")):
                setattr(module, name, 0.0)
                changed.append(value)
    if changed:
        trainer.run.say(f"model: no dropout; it was up to {max(changed):g}, in {counted(len(changed), 'place')}")


def _asked(trainer: Trainer, *, may_be_policy: bool) -> Reference:
    """A reference that is asked for each micro-batch; the policy itself where nothing else is named and it may be."""
    section = trainer.config.ref_model  # type: ignore[attr-defined]
    if section is not None:
        _refuse_other_vocabulary(trainer.run, section)
        return _Asked(trainer.run.frozen_model(section))
    without_adapter = getattr(trainer.model_unwrapped, "disable_adapter", None)
    if without_adapter is None and not may_be_policy:
        raise refusal(trainer.run, "ref_model")(
            "there is no reference: the model has no adapter to switch off",
            "name the model in ref_model"
            + (", or set precompute_reference: true" if hasattr(trainer.config, "precompute_reference") else ""),
        )
    return _Asked(trainer.model, without_adapter or nullcontext)


class _Asked:
    """Asks a model, without gradients and as in evaluation.

    Args:
        model: what the engine made of it.
        context: makes a context in which it is the reference.
    """

    def __init__(self, model: Any, context: Callable[[], Any] = nullcontext) -> None:
        self.model = model
        self.context = context

    def __call__(self, batch: Any) -> torch.Tensor:
        import torch

        with torch.no_grad(), _as_in_evaluation(self.model), self.context():
            return document_log_probabilities(self.model, batch)


@contextmanager
def _as_in_evaluation(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _refuse_other_vocabulary(run: Run, section: Any) -> None:
    refused = refusal(run, "ref_model.name_or_path")
    config = run.plugins.ask("arctic_build_model_config", object, config=section, run=run)
    there, here = (getattr(each, "vocab_size", None) for each in (config, run.model_config))
    if there != here:
        raise refused(f"the reference has a vocabulary of {there} words, and the model to train one of {here}", REMEDY)
    other = _tokenizer_of(run, section)
    if other is None:
        return
    own, words = run.trainer.tokenizer.get_vocab(), other.get_vocab()
    if odd := next((word for word, number in own.items() if words.get(word, number) != number), None):
        raise refused(
            f"the reference's tokenizer gives {odd!r} the id {words[odd]}, and the model's {own[odd]}", REMEDY
        )


def _tokenizer_of(run: Run, section: Any) -> Any:
    """The tokenizer that comes with the reference; None where there is none, or it is the policy's."""
    if section.name_or_path == run.config.model.name_or_path or not hasattr(run.trainer.tokenizer, "get_vocab"):
        return None
    config = HFTokenizerConfig(  # type: ignore[call-arg]
        name_or_path=section.name_or_path,
        revision=getattr(section, "revision", None),
        trust_remote_code=getattr(section, "trust_remote_code", None),
    )
    try:
        return HFTokenizerFactory(config, run).create_tokenizer()
    except RecipeError:  # a folder of weights alone
        return None
