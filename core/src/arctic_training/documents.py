"""The documents that the rows of a micro-batch hold, and sums over each: for objectives whose unit is an answer.

A row may be a pack of several documents, told apart by ``position_ids`` that begin anew; padding behind them is a
document of its own, in which nothing is trained.

Shapes: B rows, L tokens of a row, D documents of the micro-batch, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from arctic_training.errors import DataError
from arctic_training.loss import IGNORE_INDEX
from arctic_training.token_rows import POSITIONS

if TYPE_CHECKING:
    import torch


def document_ids(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which document of the micro-batch each token is in, from 0, in the order of the rows.

    Args:
        batch: ``input_ids`` of shape (B, L), and ``position_ids`` where rows hold several documents.

    Returns:
        int64 of shape (B, L); ascending along each row and from row to row.
    """
    import torch

    begins_BL = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    if POSITIONS in batch:
        begins_BL |= batch[POSITIONS] == 0
    begins_BL[:, 0] = True
    return (begins_BL.flatten().cumsum(0) - 1).view_as(begins_BL)


def sums_by_document(values_BL: torch.Tensor, documents_BL: torch.Tensor) -> torch.Tensor:
    """The sum of values over each document, in the precision of the values.

    Args:
        values_BL: a value at each token.
        documents_BL: what ``document_ids`` gave.

    Returns:
        Of shape (D,).
    """
    import torch

    number = int(documents_BL[-1, -1]) + 1
    sums = torch.zeros(number, dtype=values_BL.dtype, device=values_BL.device)
    return sums.index_add(0, documents_BL.flatten(), values_BL.flatten())


def pairs_of(documents_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two documents of each pair, where rows hold a first and a second one in turn.

    Args:
        documents_BL: what ``document_ids`` gave.

    Returns:
        The numbers of the first documents and those of the second, both int64 of shape (pairs,). What is left at the
        end of a row is padding and belongs to no pair.
    """
    import torch

    begins = documents_BL[:, 0]  # the number of each row's first document
    ends = torch.cat([begins[1:], documents_BL[-1, -1:] + 1])
    rows = torch.repeat_interleave(torch.arange(len(begins), device=begins.device), ends - begins)
    numbers = torch.arange(len(rows), device=begins.device)
    firsts = numbers[((numbers - begins[rows]) % 2 == 0) & (numbers + 1 < ends[rows])]
    return firsts, firsts + 1


class Pairs(NamedTuple):
    """A number for each of the two documents of each pair, both of shape (pairs,)."""

    first: torch.Tensor
    second: torch.Tensor

    @classmethod
    def of(cls, values_D: torch.Tensor, batch: dict[str, torch.Tensor]) -> Pairs:
        """Those of all documents of a micro-batch, by pairs."""
        firsts, seconds = pairs_of(document_ids(batch))
        return cls(values_D[firsts], values_D[seconds])

    def minus(self, other: Pairs) -> Pairs:
        """The differences."""
        return Pairs(self.first - other.first, self.second - other.second)

    def over(self, lengths: Pairs) -> Pairs:
        """What there is for each token, of documents of these lengths; 0 where there is none."""
        return Pairs(self.first / lengths.first.clamp(min=1), self.second / lengths.second.clamp(min=1))


def check_pairs(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The number of pairs of which something is trained, a scalar.

    Raises:
        DataError: something is trained in one document of a pair and nothing in the other, or behind the pairs.
    """
    counts = trained_of_documents(batch)
    firsts, seconds = pairs_of(document_ids(batch))
    used = counts[firsts] > 0
    if not used.equal(counts[seconds] > 0) or counts[firsts].sum() + counts[seconds].sum() != counts.sum():
        raise DataError(
            "a row is no pair of answers: it needs two documents, told apart by position_ids that begin anew, and "
            "labels in both",
            remedy="let the data factory make tokens of the rows: remove `process: false`",
        )
    return used.sum()


def label_log_probabilities(
    logits_BLV: torch.Tensor, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(label | tokens before it) of each trained token, in fp32 (float64 for logits in float64), in nats.

    Args:
        logits_BLV: what the model gives for ``input_ids``.
        batch: ``labels`` of shape (B, L).

    Returns:
        The log-probabilities, 0 where nothing is trained, and where something is, both of shape (B, L). Each stands at
        the token before its label, which is of the same document, since no first token has a label.
    """
    import torch.nn.functional as F

    labels_BL = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    logits = (logits_BLV if logits_BLV.dtype.itemsize > 4 else logits_BLV.float()).flatten(0, 1)
    losses = F.cross_entropy(logits, labels_BL.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return -losses.view_as(labels_BL), labels_BL != IGNORE_INDEX


def document_log_probabilities(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """log p(labels | tokens before them) of each document, in nats, float64 of shape (D,): sums over a text are long.

    Args:
        model: gives ``logits`` of shape (B, L, V).
        batch: ``input_ids`` and ``labels`` of shape (B, L), and what else the model takes.
    """
    log_p_BL, _ = label_log_probabilities(model(**inputs_of(batch), use_cache=False).logits, batch)
    return sums_by_document(log_p_BL.double(), document_ids(batch))


def trained_of_documents(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Trained tokens of each document, int64 of shape (D,)."""
    import torch.nn.functional as F

    trained_BL = F.pad(batch["labels"][:, 1:] != IGNORE_INDEX, (0, 1))
    return sums_by_document(trained_BL.long(), document_ids(batch))


def only_tokens(batch: Mapping[str, torch.Tensor], wanted_BL: torch.Tensor) -> dict[str, torch.Tensor]:
    """A micro-batch of some of the tokens: whole documents of each row, moved together.

    Args:
        batch: ``input_ids``, ``labels``, ``position_ids`` and what else has a value for each token.
        wanted_BL: which tokens stay.

    Returns:
        The same entries, as wide as the longest row needs (one token at least). Behind what stays is padding: a
        document of its own without labels, as in every micro-batch; other entries are 0 there. Synchronises once.
    """
    import torch

    numbers_B = wanted_BL.sum(1)
    length = max(1, int(numbers_B.max()))
    order_BL = (~wanted_BL).to(torch.int8).argsort(dim=1, stable=True)[:, :length]
    places_L = torch.arange(length, device=wanted_BL.device)
    padding_BL = places_L >= numbers_B[:, None]
    fill = {"labels": torch.tensor(IGNORE_INDEX), POSITIONS: places_L - numbers_B[:, None]}
    return {
        name: torch.where(padding_BL, fill.get(name, torch.zeros(())).to(values), values.gather(1, order_BL))
        for name, values in batch.items()
    }


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What of a micro-batch a model is called with: everything but the labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
