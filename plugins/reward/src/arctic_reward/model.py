"""The model factory ``reward``: a language model with a score head in place of its words.

It is trained, saved and exported as what transformers calls a model for sequence classification with one label; in
training it gives the score at every token, since a row holds several texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from arctic_huggingface.hub import refusal
from arctic_huggingface.model import HFModelConfig, HFModelFactory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

HEAD = "score"
"""What transformers calls the head of decoders in which each token has a score."""


class RewardModelConfig(HFModelConfig):
    pass


class RewardModelFactory(HFModelFactory):
    """Builds a reward model: of a causal language model, with a new head, or of one that has its head already."""

    name = "reward"
    config: RewardModelConfig
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    new_weights: ClassVar[tuple[str, ...]] = (f"{HEAD}.",)

    def create_config(self) -> PretrainedConfig:
        config = super().create_config()
        config.num_labels = 1
        return config

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """The model, whose ``logits`` are scores of shape (B, L, 1).

        Raises:
            RecipeError: transformers has no such model of this architecture.
        """
        tokenizer = self.trainer.tokenizer
        # Whoever loads the export pads batches with it: transformers reads the score before the padding.
        config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model = super().create_model(config)
        if not hasattr(model, HEAD):
            raise refusal(self.run, "model.name_or_path")(
                f"{type(model).__name__} has no score for each token",
                "name a causal language model, such as a Llama, Qwen or Mistral",
            )
        model.__class__ = _with_all_scores(type(model))
        return model


def _with_all_scores(plain: Any) -> Any:
    """The class of a model, of the same name, that gives the score at every token instead of at the last alone."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    def forward(self: Any, **inputs: Any) -> SequenceClassifierOutput:
        hidden_BLD = self.base_model(**inputs).last_hidden_state
        return SequenceClassifierOutput(logits=getattr(self, HEAD)(hidden_BLD))

    return type(plain.__name__, (plain,), {"forward": forward, "__module__": plain.__module__})
