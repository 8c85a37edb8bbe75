"""Every faster way of attending gives the numbers of the tree mask's plain softmax."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from cascades import HEADS, Case, Heads, random_case
from d2sd.attention import attention_with_lse, reference_attention
from d2sd.target import cascade
from d2sd.target.cascade import (
    TreeRows,
    branch_mask,
    one_level,
    tree_attention,
    two_level,
)
from d2sd.target.masks import tree_mask

CONTEXTS = (0, 1, 2, 17, 300)
NODES = (1, 2, 5, 48, 70)
# values are of size 1; a bfloat16 output alone is rounded by up to 2^-8 of itself
TOLERANCES = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2}


def in_two_levels(case: Case):
    if not case.committed:
        return in_one_level(case)  # there is no first level
    return two_level(case.query, *case.levels(), case.rows.mask, case.scale)


def in_one_level(case: Case):
    return one_level(case.query, case.keys, case.values, case.rows, case.scale)


def as_chosen(case: Case):
    return tree_attention(case.query, case.keys, case.values, case.rows, case.scale)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("way", [in_one_level, in_two_levels, as_chosen])
def test_the_numbers_are_those_of_the_tree_mask(way, heads, dtype):
    for nodes, committed in product(NODES, CONTEXTS):
        case = random_case(heads, nodes, committed, dtype)
        result = way(case)
        assert result.dtype == dtype
        error = (result.double() - case.expected()).abs().max()
        assert error < TOLERANCES[dtype], f"{nodes} nodes after {committed} rows: {error}"


@pytest.mark.parametrize("way", [in_one_level, in_two_levels])
def test_values_may_be_of_another_width_than_keys(way):
    case = random_case(Heads(4, 2, width=16, value_width=8), 5, 17, torch.float32)
    torch.testing.assert_close(way(case).double(), case.expected(), atol=3e-6, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_gives_the_reference_and_its_log_sum_exp(masked, dtype):
    case = random_case(Heads(2, 2), 6, 0, dtype)
    mask = case.rows.mask if masked else None
    given = case.query, case.keys, case.values, mask, case.scale
    fast, slow = attention_with_lse(*given), reference_attention(*given)
    wide = torch.promote_types(dtype, torch.float32)
    assert (fast.lse.dtype, slow.lse.dtype) == (wide, wide)
    torch.testing.assert_close(fast.output, slow.output, atol=TOLERANCES[dtype], rtol=0)
    torch.testing.assert_close(fast.lse, slow.lse, atol=TOLERANCES[dtype], rtol=0)


def test_the_log_sum_exp_is_that_of_the_scores():
    case = random_case(Heads(1, 1), 4, 0, torch.float64)
    scores = (case.query @ case.keys.transpose(-1, -2) * case.scale)[0, 0]
    lse = attention_with_lse(case.query, case.keys, case.values, None, case.scale).lse
    torch.testing.assert_close(lse[0, 0], scores.exp().sum(-1).log())


def test_the_way_is_chosen_by_the_size_of_the_mask(monkeypatch):
    case = random_case(HEADS["GQA"], 5, 17, torch.float32)
    one, two = in_one_level(case), in_two_levels(case)
    assert not torch.equal(one, two), "the two round differently, so they can be told apart"
    monkeypatch.setattr(cascade, "CASCADE_FROM", 5 * 17)
    assert torch.equal(as_chosen(case), two)
    monkeypatch.setattr(cascade, "CASCADE_FROM", 5 * 17 + 1)
    assert torch.equal(as_chosen(case), one)


class Allocated(TorchDispatchMode):
    """Counts the bytes of all results that are not views of an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in result if isinstance(result, tuple) else (result,):
            if tensor.untyped_storage().data_ptr() not in given:
                self.bytes += tensor.nbytes
        return result


def bytes_of(way, committed, dtype):
    case = random_case(HEADS["GQA"], 8, committed, dtype)
    rows = case.rows
    assert rows.dense is rows.dense, "the mask of a pass is made once, not once per layer"
    with Allocated() as allocated:
        if way is two_level:
            two_level(case.query, *case.levels(), rows.mask, case.scale)
        else:
            way(case.query, case.keys, case.values, rows, case.scale)
    return allocated.bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", [one_level, two_level])
def test_no_layer_copies_the_context(way, dtype):
    few = bytes_of(way, 100, dtype)
    assert 0 < few == bytes_of(way, 5000, dtype)


def test_the_count_of_bytes_sees_a_copy():
    keys = torch.zeros(1, 2, 10, 4)
    with Allocated() as allocated:
        keys[:, :, :5].clone()
    assert allocated.bytes == 1 * 2 * 5 * 4 * 4


@pytest.mark.parametrize("committed", [0, 17])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_branch_rows_and_merged_nodes_agree(heads, committed):
    case = random_case(heads, 30, committed, torch.float64)
    parents = set(case.tree.parents)
    paths = [case.tree.path_to(node) for node in range(30) if node not in parents]
    nodes = torch.tensor([node for path in paths for node in path])
    assert len(nodes) > 30, "branches repeat what a tree has once"
    columns = torch.cat([torch.arange(committed), committed + nodes])
    mask = branch_mask([len(path) for path in paths], torch.float64)
    by_node = as_chosen(case)
    for way in (tree_attention, one_level):
        rows = TreeRows(mask, committed, case.rows.group)
        keys, values = case.keys[:, :, columns], case.values[:, :, columns]
        by_branch = way(case.query[:, :, nodes], keys, values, rows, case.scale)
        torch.testing.assert_close(by_branch, by_node[:, :, nodes])


def test_a_branch_is_causal_within_itself():
    seen = (branch_mask([2, 3], torch.float32)[0, 0] == 0).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("nodes", [1, 63, 64, 65, 130])
def test_words_hold_who_sees_whom(nodes):
    case = random_case(HEADS["MQA"], nodes, 3, torch.bfloat16)
    words = case.rows.words
    assert words.shape == (nodes, -(-nodes // 64))
    bits = [[words[n, j // 64].item() >> j % 64 & 1 for j in range(nodes)] for n in range(nodes)]
    assert torch.equal(torch.tensor(bits).bool(), case.tree.visibility())


def test_the_dense_mask_is_the_tree_mask_for_every_head_of_a_group():
    case = random_case(HEADS["GQA"], 5, 3, torch.float32)
    expected = tree_mask(case.tree, 3, torch.float32)
    assert torch.equal(case.rows.dense, expected.repeat(1, 1, 3, 1))


class TwoLevels(torch.nn.Module):
    def forward(self, *tensors):
        return two_level(*tensors, 0.4)


def test_one_exported_program_serves_every_number_of_nodes_and_context():
    def given(nodes, committed):
        case = random_case(HEADS["GQA"], nodes, committed, torch.float32)
        return case, (case.query, *case.levels(), case.rows.mask)

    nodes, context = Dim("nodes", min=1, max=80), Dim("context", min=1, max=500)
    free = ({2: nodes}, {2: context}, {2: context}, {2: nodes}, {2: nodes}, {2: nodes, 3: nodes})
    example = given(5, 17)[1]
    program = torch.export.export(TwoLevels(), example, dynamic_shapes=(free,))
    for sizes in product((1, 2, 70), (1, 2, 300)):
        case, arguments = given(*sizes)
        result = program.module()(*arguments)
        torch.testing.assert_close(result.double(), case.expected(), atol=3e-6, rtol=0)
