import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2sd.drafters.block import BlockDrafter
from d2sd.drafters.boundary import likely_boundaries, rejection_posterior
from d2sd.drafters.dual import DualDrafter
from fakes import (
    MarkovProposer,
    ScriptedProposer,
    context_of,
    draw,
    paths_of,
    random_table,
    spread,
)

VOCAB = 40
ANCHOR = 9
CHAIN = (11, 12, 13, 14, 15)
CONFIDENCE = (0.95, 0.84, 0.62, 0.70, 0.42)  # the paper's worked example: boundaries 2, 4, 1, 3


def slots(*tokens, sure=0.6):
    """A row that chooses `tokens`; None where the slot is visible and says nothing."""
    unread = torch.full((VOCAB,), torch.nan, dtype=torch.float64)
    return torch.stack([unread if t is None else spread({t: sure}, VOCAB) for t in tokens])


def first_proposer():
    rows = [spread({t: c}, VOCAB) for t, c in zip(CHAIN, CONFIDENCE, strict=True)]
    return ScriptedProposer(6, {(): torch.stack(rows)})


def second_proposer():
    tables = {
        CHAIN[:1]: slots(None, 22, 23, 24, 25),
        CHAIN[:2]: slots(None, None, 33, 34, 35),
        CHAIN[:3]: slots(None, None, None, 14, 16),  # repeats the chain's 14, then differs
        CHAIN[:4]: slots(None, None, None, None, 15),  # repeats the chain to its end
    }
    return ScriptedProposer(6, tables)


def test_the_worked_examples_tree_by_hand():
    first, second = first_proposer(), second_proposer()
    tree = DualDrafter(first, second, branches=4).draft(context_of([1, ANCHOR]))
    assert draw(tree) == "\n".join(
        [
            "9 anchor",
            ". 11 first",
            ". . 12 first",
            ". . . 13 first",
            ". . . . 14 first",
            ". . . . . 15 first",
            ". . . . . 16 second@3",
            ". . . 33 second@2",
            ". . . . 34 second@2",
            ". . . . . 35 second@2",
            ". . 22 second@1",
            ". . . 23 second@1",
            ". . . . 24 second@1",
            ". . . . . 25 second@1",
        ]
    )
    assert first.passes == [(((ANCHOR,),), 6)]
    shown = tuple((ANCHOR, *CHAIN[:i]) for i in (2, 4, 1, 3))
    assert second.passes == [(shown, 6)]  # one batch, most probable boundary first


def test_fewer_branches_take_the_likelier_boundaries():
    second = second_proposer()
    tree = DualDrafter(first_proposer(), second, branches=1).draft(context_of([1, ANCHOR]))
    assert paths_of(tree) == {CHAIN[:i] for i in range(1, 6)} | {
        (11, 12, 33),
        (11, 12, 33, 34),
        (11, 12, 33, 34, 35),
    }


def test_a_longer_second_block_keeps_the_whole_chain_and_extends_it():
    extended = {
        CHAIN[:2]: slots(None, None, 33, 34, 35, 36, 37),
        CHAIN: slots(None, None, None, None, None, 17, 18),
    }
    second = ScriptedProposer(6, extended)
    drafter = DualDrafter(first_proposer(), second, branches=1, second_block_size=8)
    tree = drafter.draft(context_of([1, ANCHOR]))
    assert draw(tree) == "\n".join(
        [
            "9 anchor",
            ". 11 first",
            ". . 12 first",
            ". . . 13 first",
            ". . . . 14 first",
            ". . . . . 15 first",
            ". . . . . . 17 second@5",
            ". . . . . . . 18 second@5",
            ". . . 33 second@2",
            ". . . . 34 second@2",
            ". . . . . 35 second@2",
            ". . . . . . 36 second@2",
            ". . . . . . . 37 second@2",
        ]
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 7), st.integers(0, 7))
def test_the_tree_holds_exactly_the_chain_and_its_redrafts(seed, block_size, branches, anchor):
    table = random_table(8, seed=seed)
    first = MarkovProposer(table, block_size, noise=1.0, seed=seed)
    second = MarkovProposer(table, block_size, seed=seed)
    context = context_of([3, anchor])
    tree = DualDrafter(first, second, branches).draft(context)

    chain = BlockDrafter(first).draft(context).tokens[1:]
    confidence = first.propose(context, [(anchor,)]).greedy().probs[0, :, 0]
    rows = [chain]
    for kept in likely_boundaries(rejection_posterior(confidence), branches):
        chosen = second.propose(context, [(anchor, *chain[:kept])]).greedy().tokens[0, kept:, 0]
        rows.append((*chain[:kept], *chosen.tolist()))
    assert len(rows) == 1 + min(branches, block_size - 1)
    assert paths_of(tree) == {row[:end] for row in rows for end in range(1, block_size)}
    assert len(tree) == 1 + len(paths_of(tree))  # no path twice
    assert all(parent < node for node, parent in enumerate(tree.parents))


def test_the_boundary_choice_can_be_replaced():
    second = second_proposer()
    drafter = DualDrafter(
        first_proposer(), second, branches=2, choose=lambda posterior, branches: [3]
    )
    drafter.draft(context_of([1, ANCHOR]))
    assert second.passes == [(((ANCHOR, *CHAIN[:3]),), 6)]


def test_a_second_block_below_the_first_is_refused():
    with pytest.raises(ValueError, match="second_block_size is 4"):
        DualDrafter(first_proposer(), second_proposer(), second_block_size=4)
