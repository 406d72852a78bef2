"""Columns that a model is asked for while rows are prepared, and losses over logits in chunks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from arctic_training import asked_rows, chunks
from arctic_training.asked_rows import with_asked_columns
from arctic_training.chunks import in_chunks
from arctic_training.token_rows import TokenRows


def rows_of(*labels):
    flat = np.array([label for row in labels for label in row], np.int32)
    columns = {"input_ids": np.arange(1, len(flat) + 1, dtype=np.int32), "labels": flat}
    return TokenRows(columns, np.array([len(row) for row in labels]))


def factory_of(directory, max_length=100):
    preparation = SimpleNamespace(next_directory=lambda: directory)
    return SimpleNamespace(preparation=preparation, max_length=max_length, device=torch.device("cpu"))


def ask(ids_BL, places_BL):
    assert not torch.is_grad_enabled()
    return {"twice": 2 * ids_BL[places_BL], "half": ids_BL[places_BL] / 2}


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("together", [1, 8, 1000])
def test_a_column_stands_where_trained_tokens_are_predicted_from(tmp_path, monkeypatch, in_files, together):
    monkeypatch.setattr(asked_rows, "TOKENS_AT_A_TIME", together)
    rows = rows_of([-100, 5, -100, 5], [-100, -100], [5, 5, 5])
    asked = with_asked_columns(rows, factory_of(tmp_path / "asked" if in_files else None), ask)
    assert asked.columns["twice"].tolist() == [2, 0, 6, 0, 0, 0, 14, 16, 0]
    assert asked.columns["half"].tolist() == [0.5, 0, 1.5, 0, 0, 0, 3.5, 4, 0]
    assert asked.columns["half"].dtype == np.float32
    assert asked.columns["input_ids"].tolist() == rows.columns["input_ids"].tolist()
    assert (asked.lengths.tolist(), asked.parts, asked.trained.tolist()) == ([4, 2, 3], [3], rows.trained.tolist())


def test_a_row_is_asked_about_up_to_the_longest_that_is_trained(tmp_path):
    asked = with_asked_columns(rows_of([5, 5, 5, 5, 5]), factory_of(None, max_length=3), ask)
    assert asked.columns["twice"].tolist() == [2, 4, 0, 0, 0]


def test_no_rows_stay_none():
    assert len(with_asked_columns(rows_of(), factory_of(None), ask)) == 0


@pytest.mark.parametrize("numbers", [1, 33, 10_000])
def test_a_sum_in_chunks_and_its_gradient_are_those_of_the_whole(monkeypatch, numbers):
    monkeypatch.setattr(chunks, "NUMBERS_AT_A_TIME", numbers)
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True, generator=torch.manual_seed(0))
    labels = torch.arange(7)

    def terms(logits, labels, nothing):
        assert nothing is None
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return torch.stack([losses.sum(), losses.square().sum()])

    found = in_chunks(terms, logits, labels, None)
    expected = terms(logits, labels, None)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value[0] + 3 * value[1], logits)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_no_tokens_sum_to_nothing_with_a_gradient():
    logits = torch.randn(0, 11, requires_grad=True)
    total = in_chunks(lambda logits: logits.log_softmax(-1).sum(), logits)
    total.backward()
    assert total.item() == 0
