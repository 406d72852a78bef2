"""Documents of a micro-batch: told apart by positions, and summed over one by one."""

from __future__ import annotations

import pytest
import torch

from arctic_training.documents import check_pairs, document_ids, label_log_probabilities, pairs_of, sums_by_document
from arctic_training.errors import DataError

PACKS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 0, 0]]),
    "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 1]]),
    "labels": torch.tensor([[-100, 6, 7, -100, 9, -100], [-100, 2, -100, 4, -100, -100]]),
}


def test_documents_begin_where_positions_do_and_at_each_row():
    assert document_ids(PACKS).tolist() == [[0, 0, 0, 1, 1, 2], [3, 3, 4, 4, 5, 5]]


def test_rows_without_positions_are_documents():
    assert document_ids({"input_ids": PACKS["input_ids"]}).tolist() == [[0] * 6, [1] * 6]


def test_log_probabilities_are_those_of_the_labels_summed_over_each_document():
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_p, trained = label_log_probabilities(logits, PACKS)
    sums = sums_by_document(log_p, document_ids(PACKS))
    table = logits.log_softmax(-1)
    expected = [table[0, 0, 6] + table[0, 1, 7], table[0, 3, 9], 0, table[1, 0, 2], table[1, 2, 4], 0]
    torch.testing.assert_close(sums.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert sums_by_document(trained.int(), document_ids(PACKS)).tolist() == [2, 1, 0, 1, 1, 0]


def test_pairs_are_two_documents_of_one_row_each_and_padding_is_left_over():
    first, second = pairs_of(document_ids(PACKS))
    assert (first.tolist(), second.tolist()) == ([0, 3], [1, 4])
    assert check_pairs(PACKS) == 2
    positions = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 0, 1]])
    assert [part.tolist() for part in pairs_of(document_ids({**PACKS, "position_ids": positions}))] == [
        [0, 2, 4],
        [1, 3, 5],
    ]


def test_pairs_of_which_nothing_is_trained_do_not_count():
    labels = PACKS["labels"].clone()
    labels[1] = -100
    assert check_pairs({**PACKS, "labels": labels}) == 1


@pytest.mark.parametrize("untrained", [slice(0, 3), slice(3, 5)])
def test_rows_with_one_answer_are_no_pairs(untrained):
    labels = PACKS["labels"].clone()
    labels[0, untrained] = -100
    with pytest.raises(DataError, match="no pair of answers"):
        check_pairs({**PACKS, "labels": labels})


def test_other_columns_of_rows_reach_the_loss_and_not_the_model():
    import numpy as np

    from arctic_training.dataloader import MicroBatch, micro_batch
    from arctic_training.token_data import TokenDataFactory

    class Factory(TokenDataFactory):
        name = "scored"

        def __init__(self):
            pass

        def encoder(self):
            raise AssertionError("not asked")

        def _padded_length(self, longest):
            return longest + 1

        def _pad_id(self):
            return 0

    rows = [
        {name: np.array(values, np.float32 if name == "score" else np.int32) for name, values in row.items()}
        for row in (
            {"input_ids": [1, 2], "labels": [-100, 2], "score": [0.5, 0.25]},
            {"input_ids": [3], "labels": [-100], "score": [1.5]},
        )
    ]
    batch = micro_batch(Factory().collate, rows, [0, 1], spare=lambda: rows[0])
    assert set(batch) == {"input_ids", "labels"}
    assert batch.columns["score"].tolist() == [[0.5, 0.25, 0.0], [1.5, 0.0, 0.0]]
    function, arguments = batch.to(torch.device("cpu")).with_tensors(labels=batch["labels"]).__reduce__()
    assert function is MicroBatch
    assert function(*arguments).columns["score"].tolist() == batch.columns["score"].tolist()
