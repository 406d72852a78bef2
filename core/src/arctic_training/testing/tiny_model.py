"""The model of the tiny components, in a module of its own because it needs torch at once.

Shapes: B rows, L tokens, D hidden units, V words.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class TinyModel(nn.Module):
    """Predicts the next token from the token and the mean of all embeddings up to it."""

    def __init__(self, words: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, hidden_size)
        self.hidden = nn.Linear(2 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, words)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embeddings, by the name that models of transformers have for them."""
        return self.embedding

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        tokens_BLD = self.embedding(input_ids)
        counts_L1 = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)[:, None]
        mean_BLD = (tokens_BLD.float().cumsum(1) / counts_L1).to(tokens_BLD.dtype)
        hidden_BLD = torch.tanh(self.hidden(torch.cat([tokens_BLD, mean_BLD], dim=-1)))
        return SimpleNamespace(logits=self.output(self.dropout(hidden_BLD)))
