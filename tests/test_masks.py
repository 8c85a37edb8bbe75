"""The tree mask and the positions against their definition, node by node."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given

from d2sd.target.masks import tree_mask, tree_positions
from d2sd.tree import Branch, TokenTree

BRANCHES = st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), max_size=5)


def tree_of(branches):
    return TokenTree.from_branches(9, [Branch(tokens) for tokens in branches])


@given(branches=BRANCHES, committed=st.integers(0, 5))
def test_a_node_sees_the_committed_rows_its_ancestors_and_itself(branches, committed):
    tree = tree_of(branches)
    mask = tree_mask(tree, committed, torch.float32)
    assert mask.shape == (1, 1, len(tree), committed + len(tree))
    for node in range(len(tree)):
        seen = {*range(committed), *(committed + step for step in tree.path_to(node))}
        for column in range(committed + len(tree)):
            expected = 0 if column in seen else torch.finfo(torch.float32).min
            assert mask[0, 0, node, column] == expected


@given(branches=BRANCHES, committed=st.integers(0, 5))
def test_positions_follow_the_depth(branches, committed):
    tree = tree_of(branches)
    expected = [committed + len(tree.path_to(node)) - 1 for node in range(len(tree))]
    assert tree_positions(tree, committed).tolist() == [expected]


def test_a_chain_gets_the_causal_mask():
    mask = tree_mask(tree_of([(1, 2, 0, 1)]), 3, torch.float64)
    causal = torch.ones(5, 8).tril(3).bool()
    assert torch.equal(mask[0, 0] == 0, causal)
    assert mask.dtype == torch.float64


def test_hidden_entries_are_finite_so_that_no_row_can_become_nan():
    mask = tree_mask(tree_of([(1,), (2,)]), 0, torch.bfloat16)
    assert mask.isfinite().all()
    assert mask[0, 0, 2, 1] == torch.finfo(torch.bfloat16).min
