"""InfoNCE (van den Oord et al. 2018, arXiv:1807.03748), summed up over leading units (Kusupati et al. 2022,
arXiv:2205.13147), against formulas written out in float64; and what equal texts and ties come to."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from arctic_embed.contrast import contrast, figure_names

ROWS = [["q0", "d0"], ["q1", "d1", "n1"], ["q2", "d2", "n2", "n3"], ["q3", "d3"]]
DOUBLED = [["q0", "d0"], ["q0", "d1", "d0"], ["q2", "d0", "n2"], ["q3", "d3"]]
WIDTH = 8


def settings(**given):
    defaults = {"temperature": 0.1, "symmetric": False, "mask_equal_texts": True}
    return SimpleNamespace(**{**defaults, "matryoshka_dims": [], "matryoshka_weights": []} | given)


def texts_of(rows, seed=0):
    flat = [text for row in rows for text in row]
    numbers = torch.tensor([number for row in rows for number in range(1, len(row) + 1)])
    keys = torch.tensor([sorted(set(flat)).index(text) for text in flat])
    of_text = torch.randn(len(flat), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return of_text, numbers, keys


def formula(rows, vectors, config):
    """The loss of each row: one similarity after the other, as the papers write them."""
    places, line = {}, 0
    for number, row in enumerate(rows):
        for place in range(len(row)):
            places[number, place] = vectors[line]
            line += 1

    def s(one, other, dim):
        one, other = places[one][:dim], places[other][:dim]
        return (one @ other) / (one.norm() * other.norm()) / config.temperature

    def is_left_out(number, other, place):
        """Whether a document of another place is the positive text of a row again, or answers the same query."""
        if (other, place) == (number, 1) or not config.mask_equal_texts:
            return False
        answers_it = place == 1 and rows[other][0] == rows[number][0]
        return rows[other][place] == rows[number][1] or answers_it

    losses = []
    for number in range(len(rows)):
        loss = 0
        weights = config.matryoshka_weights or [1.0] * len(config.matryoshka_dims or [WIDTH])
        for dim, weight in zip(config.matryoshka_dims or [WIDTH], weights, strict=True):
            own = s((number, 0), (number, 1), dim)
            documents = [
                s((number, 0), (other, place), dim)
                for other, row in enumerate(rows)
                for place in range(1, len(row))
                if not is_left_out(number, other, place)
            ]
            term = -torch.log(torch.exp(own) / sum(torch.exp(value) for value in documents))
            if config.symmetric:
                queries = [
                    s((other, 0), (number, 1), dim)
                    for other in range(len(rows))
                    if other == number or not is_left_out(number, other, 1)
                ]
                term = (term - torch.log(torch.exp(own) / sum(torch.exp(value) for value in queries))) / 2
            loss = loss + weight * term
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("rows", [ROWS, DOUBLED], ids=["all different", "equal texts"])
@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.1},
        {"temperature": 1.0, "symmetric": True},
        {"mask_equal_texts": False, "symmetric": True},
        {"matryoshka_dims": [8, 4, 2], "matryoshka_weights": [1.0, 0.5, 0.25]},
        {"matryoshka_dims": [3], "symmetric": True},
    ],
    ids=lambda given: " ".join(map(str, given)),
)
def test_value_and_gradient_are_those_of_the_formula(rows, given):
    config = settings(**given)
    vectors, numbers, keys = texts_of(rows)
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    found = contrast(ours, numbers, keys, range(len(rows)), config)[:, 0]
    expected = formula(rows, theirs, config)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


def test_rows_looked_at_in_parts_are_the_same_rows():
    vectors, numbers, keys = texts_of(ROWS)
    config = settings(symmetric=True)
    whole = contrast(vectors, numbers, keys, range(4), config)
    parts = [contrast(vectors, numbers, keys, rows, config) for rows in (range(1), range(1, 3), range(3, 4))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_figures_are_ranks_among_all_documents_and_equal_texts_are_no_negatives():
    config = settings(matryoshka_dims=[8, 2])
    names = figure_names(config, WIDTH)
    assert names == ["negatives", "recall@1", "recall@10", "mrr", "recall@1/2", "recall@10/2", "mrr/2"]
    vectors, numbers, keys = texts_of(DOUBLED)
    found = dict(zip(names, contrast(vectors, numbers, keys, range(4), config)[:, 1:].T.tolist(), strict=True))
    # Of the other documents d0 is left out for q0 and q2, wherever it stands; q0 has two answers.
    assert found["negatives"] == [2, 4, 3, 5]
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    documents = {1: "d0", 3: "d1", 4: "d0", 6: "d0", 7: "n2", 9: "d3"}
    ranks = 1 + sum(float(unit[8] @ unit[line]) >= float(unit[8] @ unit[9]) for line in documents if line != 9)
    assert found["mrr"][3] == pytest.approx(1 / ranks)
    assert found["recall@1"][3] == (ranks == 1)


def test_one_embedding_for_all_is_not_perfect():
    vectors, numbers, keys = texts_of(ROWS)
    same = torch.ones_like(vectors)
    found = contrast(same, numbers, keys, range(4), settings())
    assert found[:, 0].tolist() == pytest.approx([math.log(7)] * 4)
    assert found[:, 2].tolist() == [0, 0, 0, 0]
    assert found[:, 4].tolist() == pytest.approx([1 / 7] * 4)


def test_a_row_whose_every_negative_is_left_out_costs_nothing_and_is_finite():
    rows = [["q", "d"], ["q", "e"], ["r", "f"]]
    vectors, numbers, keys = texts_of(rows)
    vectors.requires_grad_()
    alone = [["q", "d"], ["q", "e"]]
    found = contrast(vectors[:4], numbers[:4], keys[:4], range(len(alone)), settings(symmetric=True))
    found[:, 0].sum().backward()
    assert found[:, :2].tolist() == [[0, 0], [0, 0]]
    assert vectors.grad.isfinite().all()
