"""The largest columns, against a sort of everything."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2sd.drafters.largest import largest


def assert_largest(scores, count):
    best, columns = largest(scores, count)
    assert torch.equal(best, scores.sort(dim=-1, descending=True).values[:, :count])
    assert torch.equal(scores.gather(1, columns), best)
    assert all(len(set(row)) == len(row) for row in columns.tolist())  # equal scores: each once


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3000), st.integers(1, 20), st.integers(1, 40))
def test_few_different_scores(seed, columns, count, different):
    rng = torch.Generator().manual_seed(seed)
    assert_largest(torch.randint(-different, different, (5, columns), generator=rng) / 8, count)


@pytest.mark.parametrize("columns", [8192, 8201, 20_000])
@pytest.mark.parametrize("count", [1, 16, 64, 300])
def test_wide_rows(columns, count):
    rng = torch.Generator().manual_seed(columns)
    scores = torch.randn(5, columns, generator=rng)
    assert_largest(scores, count)
    assert_largest(scores.bfloat16().float(), count)
    assert torch.equal(largest(scores, count).columns, scores.topk(count).indices)


def test_the_best_may_be_the_last_columns():
    scores = torch.zeros(4, 8199)
    scores[:, -3:] = torch.tensor([1.0, 3.0, 2.0])
    assert largest(scores, 3).columns.tolist() == [[8197, 8198, 8196]] * 4


def test_what_cannot_be_comes_last():
    scores = torch.full((4, 8192), -torch.inf)
    scores[:, 7] = 0.0
    assert largest(scores, 2).scores.tolist() == [[0.0, -torch.inf]] * 4
    assert largest(scores, 2).columns[:, 0].tolist() == [7] * 4
