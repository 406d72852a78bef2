"""The model ``embed``: an encoder of transformers, and what makes one embedding of its hidden states.

Shapes: T texts, L tokens of the longest, D units of an embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from arctic_huggingface.model import HFModelConfig, HFModelFactory
from arctic_training.config import key

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

Pooling = Literal["mean", "cls", "last"]


class EmbedModelConfig(HFModelConfig):
    pooling: Pooling = key(
        "mean", doc="What is the embedding: the mean of a text's last hidden states, the first (cls) or the last."
    )


class EmbedModelFactory(HFModelFactory):
    """Builds an encoder without a head: any that ``AutoModel`` of transformers knows."""

    name = "embed"
    config: EmbedModelConfig
    auto_class = "AutoModel"
    new_weights = ("pooler.",)

    def create_model(self, config: PretrainedConfig) -> PreTrainedModel:
        """The encoder. A pooling layer that comes with it stays as it is: no embedding goes through it.

        Raises:
            RecipeError: the model needs a decoder's input too.
        """
        if getattr(config, "is_encoder_decoder", False):
            raise self._refusal("name_or_path")(
                f"{self.config.name_or_path!r} is an encoder with a decoder, and a text has input for the former alone",
                "name a model that is an encoder or a decoder by itself",
            )
        model = super().create_model(config)
        for name, parameter in model.named_parameters():
            if name.startswith(self.new_weights):
                parameter.requires_grad_(False)
        return model


def pooled(hidden_TLD: torch.Tensor, mask_TL: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """An embedding of each text, of any length, in fp32 and of shape (T, D).

    Args:
        hidden_TLD: the last hidden states; padding is on the right.
        mask_TL: 1 where there is a token.
        pooling: which of them make it.
    """
    import torch

    hidden_TLD = hidden_TLD.float()
    if pooling == "cls":
        return hidden_TLD[:, 0]
    if pooling == "last":
        return hidden_TLD[torch.arange(len(hidden_TLD), device=hidden_TLD.device), mask_TL.sum(1) - 1]
    mask_TL1 = mask_TL[..., None].float()
    return (hidden_TLD * mask_TL1).sum(1) / mask_TL1.sum(1)
