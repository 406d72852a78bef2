"""How much of each source an epoch holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arctic_training.mixture import Share, draw


def random_sources(*sizes, seed=0):
    """Trained tokens of rows of several sources, from 1 to 200 each."""
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 200, size) for size in sizes]


def used(trained, drawn, by="trained_tokens"):
    """How much of each source was drawn."""
    return [int(counts[rows].sum()) if by != "rows" else len(rows) for counts, rows in zip(trained, drawn, strict=True)]


sources = st.lists(st.integers(1, 60), min_size=1, max_size=4)


@given(sources, st.data(), st.sampled_from(["rows", "trained_tokens"]), st.integers(0, 5))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_weights_are_kept_to_within_a_row_and_no_source_is_used_more_often_than_it_may(sizes, data, by, seed):
    trained = random_sources(*sizes)
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    passes = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5]), min_size=len(sizes), max_size=len(sizes)))
    shares = [Share(weight, most) for weight, most in zip(weights, passes, strict=True)]
    drawn = draw(shares, trained, by, seed)
    amounts = used(trained, drawn, by)
    row = [1 if by == "rows" else int(counts.max()) for counts in trained]
    units = [len(counts) if by == "rows" else int(counts.sum()) for counts in trained]
    epoch = min(unit * most / weight for unit, most, weight in zip(units, passes, weights, strict=True))
    for amount, weight, slack in zip(amounts, weights, row, strict=True):
        assert abs(amount - epoch * weight) <= slack / 2 + 1
    for rows, counts, most in zip(drawn, trained, passes, strict=True):
        often = np.bincount(rows, minlength=len(counts))
        assert often.max() <= np.ceil(most)
        assert often.max() - often.min() <= 1, "every row as often as every other, or once more"


@given(sources, st.data(), st.integers(0, 5))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_passes_and_caps_are_kept(sizes, data, seed):
    trained = random_sources(*sizes)
    shares = [
        Share(None, data.draw(st.sampled_from([0.25, 1.0, 2.0, 2.5])), data.draw(st.none() | st.integers(1, 5000)))
        for _ in sizes
    ]
    for share, counts, rows in zip(shares, trained, draw(shares, trained, "trained_tokens", seed), strict=True):
        amount, largest = int(counts[rows].sum()), int(counts.max())
        asked = min(share.passes * counts.sum(), share.most_trained_tokens or np.inf)
        assert amount <= (share.most_trained_tokens or np.inf)
        assert asked - largest < amount + 1 <= asked + largest / 2 + 2
        assert (np.diff(rows) >= 0).all()


def test_a_source_that_is_asked_for_nothing_gives_each_row_once():
    trained = random_sources(10, 20)
    one, other = draw([Share(), Share(passes=2)], trained, "trained_tokens", 0)
    assert one.tolist() == list(range(10))
    assert other.tolist() == [row for row in range(20) for _ in range(2)]


def test_what_weights_are_proportions_of_says_nothing_without_weights():
    """The cache of prepared rows leaves it out of its key then."""
    trained = random_sources(30, 40)
    shares = [Share(passes=0.5), Share(most_trained_tokens=900)]
    one, other = (draw(shares, trained, by, 0) for by in ("rows", "trained_tokens"))
    assert [rows.tolist() for rows in one] == [rows.tolist() for rows in other]


@pytest.mark.parametrize("by", ["rows", "trained_tokens"])
def test_a_source_with_a_weight_and_a_cap_never_gives_more_than_the_cap(by):
    trained = random_sources(200, 200)
    for seed in range(20):
        shares = [Share(1.0, 1.0, 3000), Share(1.0)]
        drawn = draw(shares, trained, by, seed)
        assert 2000 < used(trained, drawn)[0] <= 3000


def test_another_seed_draws_other_rows():
    trained = random_sources(50)
    first, again, other = (draw([Share(passes=0.5)], trained, "rows", seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other
