"""The largest columns, against a stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2sd.drafters.largest import largest


def by_sorting(scores, count):
    return scores.sort(stable=True, dim=-1, descending=True).indices[:, :count]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3000), st.integers(1, 20), st.integers(1, 40))
def test_equal_scores_come_by_column(seed, columns, count, different):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(-different, different, (3, columns), generator=rng) / 8
    assert torch.equal(largest(scores, count), by_sorting(scores, count))
    assert torch.equal(largest(scores.double(), count), by_sorting(scores, count))


@pytest.mark.parametrize("columns", [8192, 8201, 20_000])
@pytest.mark.parametrize("count", [1, 16, 64, 300])
def test_wide_rows(columns, count):
    rng = torch.Generator().manual_seed(columns)
    scores = torch.randn(2, columns, generator=rng).bfloat16().float()  # many are equal
    assert torch.equal(largest(scores, count), by_sorting(scores, count))


def test_the_best_may_be_the_last_column():
    scores = torch.zeros(1, 8199)
    scores[0, -1] = 1
    assert largest(scores, 3).tolist() == [[8198, 0, 1]]


def test_zeros_of_both_signs_and_infinities_are_ordered():
    scores = torch.tensor([[-0.0, 0.0, -torch.inf, -1e-30, torch.inf, -0.0]])
    assert largest(scores, 9).tolist() == [[4, 0, 1, 5, 3, 2]]
