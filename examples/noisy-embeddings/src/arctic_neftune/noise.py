"""NEFTune (Jain et al., 2023, arXiv:2310.05914): uniform noise on the embeddings of training rows.

Shapes: B rows, L tokens, D hidden units.
"""

from arctic_training import Config, key


class NeftuneConfig(Config):
    alpha: float = key(0.0, ge=0, doc="Strength of the noise, 5 to 15 in the paper; 0 is none.")


def put_into(model, alpha):
    """Let a model's embeddings have the noise while it trains."""
    model.get_input_embeddings().register_forward_hook(
        lambda module, ids, embedded_BLD: noisy(embedded_BLD, alpha) if module.training else embedded_BLD
    )


def noisy(embedded_BLD, alpha):
    """Embeddings plus noise that is uniform within alpha / sqrt(L D) of zero: algorithm 1 of the paper."""
    import torch

    bound = alpha / (embedded_BLD.shape[-2] * embedded_BLD.shape[-1]) ** 0.5
    return embedded_BLD + torch.empty_like(embedded_BLD).uniform_(-bound, bound)
