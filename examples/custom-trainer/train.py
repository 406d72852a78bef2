"""A trainer with a loss of its own, and the model factory that comes with it.

Arctic looks for a `train.py` beside the recipe. What is declared here can be named in that recipe.
"""

from arctic_training import SFTTrainer, register
from arctic_training.model import HFModelFactory


class CustomModelFactory(HFModelFactory):
    """Starts with quieter residual branches: their output weights are divided by sqrt(2 * layers).

    So the sum of all branches keeps its variance whatever the depth (Radford et al., 2019, section 2.3).
    """

    name = "my_custom_model_factory"

    def create_model(self, config):
        import torch  # here and not above, so that `arctic validate` need not wait for it

        model = super().create_model(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    weight.div_((2 * config.num_hidden_layers) ** 0.5)
        return model


@register
class CustomTrainer(SFTTrainer):
    """Cross entropy plus z-loss, which keeps logits small (Chowdhery et al., 2022, arXiv:2204.02311, section 5)."""

    name = "my_custom_trainer"
    model_factory: CustomModelFactory

    def loss(self, batch):
        import torch.nn.functional as F

        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        logits = self.model(**inputs, use_cache=False).logits[:, :-1]  # the logits at t predict the token at t + 1
        labels = batch["labels"][:, 1:]
        trained = labels != -100
        logits, labels = logits[trained].float(), labels[trained]
        z_loss = 1e-4 * logits.logsumexp(dim=-1).square().mean()
        # A mean over the trained tokens: the loop weighs it, so accumulation and more ranks change nothing.
        return F.cross_entropy(logits, labels) + z_loss
