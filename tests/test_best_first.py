import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2sd.drafters.best_first import (
    BestFirstDrafter,
    best_first_tree,
    fetched_rows,
    linked,
    ranked_paths,
    ranked_rows,
)
from d2sd.drafters.proposer import Candidates, Proposal
from fakes import MarkovProposer, ScriptedProposer, context_of, draw, random_table, spread


def marginals(slots, vocab, seed):
    rng = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(slots, vocab, generator=rng, dtype=torch.float64)).softmax(-1)


def chances(tree, probs):
    """Probability of every node's path, anchor first."""
    chances = [1.0]
    for node in range(1, len(tree)):
        own = float(probs[tree.depths[node] - 1, tree.tokens[node]])
        chances.append(chances[tree.parents[node]] * own)
    return chances


def test_the_most_probable_paths_by_hand():
    rows = [spread({1: 0.6, 2: 0.3}, 9), spread({3: 0.5, 4: 0.45}, 9), spread({5: 0.9}, 9)]
    proposer = ScriptedProposer(4, {(): torch.stack(rows)})
    # .6 | .3 and .6*.5=.3 (the sibling was found first) | .6*.45=.27, .27=.3*.9 | .243
    tree = BestFirstDrafter(proposer, budget=6).draft(context_of([0, 7]))
    assert draw(tree) == "\n".join(
        [
            "7 anchor",
            ". 1 first",
            ". . 3 first",
            ". . . 5 first",
            ". . 4 first",
            ". . . 5 first",
            ". 2 first",
        ]
    )
    assert proposer.passes == [(((7,),), 4)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5), st.integers(1, 30))
def test_holds_the_most_probable_of_all_paths(seed, slots, vocab, budget):
    probs = marginals(slots, vocab, seed)
    every_path = [
        float(torch.stack([probs[slot, token] for slot, token in enumerate(path)]).prod())
        for length in range(1, slots + 1)
        for path in itertools.product(range(vocab), repeat=length)
    ]
    tree = best_first_tree(0, Proposal.from_probs(probs[None]).top(budget), budget)
    assert len(tree) - 1 == min(budget, len(every_path))
    found = chances(tree, probs)[1:]
    assert found == pytest.approx(sorted(every_path, reverse=True)[:budget])
    assert found == sorted(found, reverse=True)  # so `tree.first(n)` is the best tree of n nodes
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert len(tree.children) == len(tree) - 1  # no path twice


def test_no_node_is_spent_on_the_impossible():
    probs = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]])
    tree = best_first_tree(0, Proposal.from_probs(probs).top(3), budget=50)
    assert draw(tree) == "0 anchor\n. 0 first\n. . 0 first\n. . 1 first"


def test_equal_chances_leave_in_the_same_order_every_time():
    candidates = Candidates(torch.tensor([[[4, 5], [6, 7]]]), torch.full((1, 2, 2), 0.5))
    tree = best_first_tree(0, candidates, budget=6)
    assert tree.tokens == (0, 4, 5, 6, 6, 7, 7)
    assert tree.parents == (-1, 0, 0, 1, 2, 1, 2)


def test_a_budget_of_one_is_the_most_probable_token():
    probs = marginals(3, 8, seed=1)
    tree = best_first_tree(0, Proposal.from_probs(probs[None]).top(1), budget=1)
    assert tree.tokens == (0, int(probs[0].argmax()))


def test_block_size_can_be_chosen():
    proposer = MarkovProposer(random_table(6), block_size=3)
    depths = BestFirstDrafter(proposer, budget=200, block_size=4).draft(context_of([2])).depths
    assert max(depths) == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 4.0), st.integers(17, 90), st.integers(1, 90))
def test_fetched_candidates_give_the_tree_of_all(seed, scale, vocab, budget):
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 4, vocab, generator=rng).bfloat16().float()  # some are equal
    proposal = Proposal.from_probs((scale * noise).softmax(-1))
    [row] = fetched_rows(proposal, [()], ["first"])
    [whole] = ranked_rows(proposal.top(vocab), [()], ["first"])
    paths = ranked_paths(linked(row), budget)
    assert paths.chances == ranked_paths(linked(whole), budget).chances
    tree = paths.tree(0)
    assert paths.chances == pytest.approx(chances(tree, proposal.probs[0])[1:])
    assert len(tree.children) == len(tree) - 1  # no path twice


def test_more_candidates_are_fetched_only_where_they_may_matter():
    flat = torch.full((98,), 1 / 98)
    sharp = torch.tensor([0.5**n for n in range(1, 99)])
    [row] = fetched_rows(Proposal.from_probs(torch.stack([flat, sharp])[None]), [()], ["first"])
    assert len(ranked_paths(linked(row), 16)) == 16
    assert [len(slot) for slot in row.tokens] == [16, 16]
    assert len(ranked_paths(linked(row), 70)) == 70
    assert [len(slot) for slot in row.tokens] == [98, 16]


def test_the_first_paths_are_a_tree_of_their_own():
    proposal = Proposal.from_probs(marginals(3, 8, seed=1)[None])
    [row] = ranked_rows(proposal.top(8), [()], ["first"])
    paths = ranked_paths(linked(row), 20)
    assert paths.chances == pytest.approx(chances(paths.tree(5), proposal.probs[0])[1:])
    assert paths.tree(5, 7) == ranked_paths(linked(row), 7).tree(5)
