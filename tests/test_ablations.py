from collections import Counter

import pytest
import torch

from d2sd.drafters.ablations import (
    SamplesDrafter,
    ThreeLevelDrafter,
    likely_second_breaks,
)
from d2sd.drafters.block import FilledRow
from d2sd.drafters.dual import DualDrafter
from d2sd.drafters.proposer import Proposal, Proposer
from fakes import MarkovProposer, ScriptedProposer, context_of, draw, random_table, spread

CONTEXT = context_of([0, 9])


def one_pass(*rows):
    return ScriptedProposer(len(rows) + 1, {(): torch.stack(rows)})


def slots(*choices):
    """(token, confidence) per slot; None where the slot is visible."""
    unread = torch.full((40,), torch.nan, dtype=torch.float64)
    return torch.stack([unread if c is None else spread(dict([c]), 40) for c in choices])


def test_samples_keep_the_greedy_chain_and_add_at_most_so_many_rows():
    drafter = SamplesDrafter(one_pass(spread({1: 0.5}, 4), spread({2: 0.4}, 4)), branches=3)
    for _ in range(20):
        tree = drafter.draft(CONTEXT)
        assert tree.tokens[:3] == (9, 1, 2)
        assert tree.sources[:3] == ("anchor", "first", "first")
        assert set(tree.sources[3:]) <= {"sample"}
        assert len(tree) <= 1 + 4 * 2


def test_samples_follow_the_pass_at_temperature_one():
    chances = {0: 0.1, 1: 0.5, 2: 0.4}
    drafter = SamplesDrafter(one_pass(spread(chances, 4)), branches=1, seed=1)
    drawn = Counter(drafter.draft(CONTEXT).tokens[-1] for _ in range(2000))
    assert {token: count / 2000 for token, count in drawn.items()} == {
        token: pytest.approx(chance, abs=0.04) for token, chance in chances.items()
    }


def test_equal_seeds_draw_equal_samples():
    first, again, other = [
        SamplesDrafter(MarkovProposer(random_table(9), 6), seed=seed) for seed in (5, 5, 6)
    ]
    trees = [[d.draft(CONTEXT_9).tokens for _ in range(5)] for d in (first, again, other)]
    assert trees[0] == trees[1] != trees[2]


CONTEXT_9 = context_of([0, 8])


class NarrowProposer(Proposer):
    """Speaks a draft vocabulary of two tokens, 11 and 30 of the target's."""

    block_size = 2

    def propose(self, context, visible, block_size=None):
        return Proposal.from_probs(torch.tensor([[[0.2, 0.8]]]), torch.tensor([11, 30]))


def test_sampled_draft_tokens_become_the_targets():
    tokens = SamplesDrafter(NarrowProposer(), branches=30).draft(CONTEXT).tokens
    assert tokens == (9, 30, 11)


def test_the_first_drafter_as_its_own_second():
    tables = {
        (): slots((1, 0.9), (2, 0.3)),
        (1,): slots(None, (7, 0.8)),
    }
    proposer = ScriptedProposer(3, tables)
    tree = DualDrafter(proposer, proposer, branches=1).draft(CONTEXT)
    assert draw(tree) == "9 anchor\n. 1 first\n. . 2 first\n. . 7 second@1"


def test_a_third_level_redrafts_inside_the_second_rows():
    first = ScriptedProposer(5, {(): slots((1, 0.9), (2, 0.5), (3, 0.9), (4, 0.9))})
    second = ScriptedProposer(
        5,
        {
            (1,): slots(None, (22, 0.9), (23, 0.2), (24, 0.9)),
            (1, 22): slots(None, None, (33, 0.9), (34, 0.9)),
        },
    )
    tree = ThreeLevelDrafter(first, second, branches=1, third_branches=1).draft(CONTEXT)
    assert draw(tree) == "\n".join(
        [
            "9 anchor",
            ". 1 first",
            ". . 2 first",
            ". . . 3 first",
            ". . . . 4 first",
            ". . 22 second@1",
            ". . . 23 second@1",
            ". . . . 24 second@1",
            ". . . 33 third@2",
            ". . . . 34 third@2",
        ]
    )
    assert [visible for visible, _ in second.passes] == [((9, 1),), ((9, 1, 22),)]


def test_second_breaks_are_ranked_by_both_passes_and_never_repeat_a_row():
    posterior = torch.tensor([0.1, 0.6, 0.3])
    redrafts = [
        FilledRow((1,), (2, 5), torch.tensor([0.5, 0.5])),  # its part (1, 2) is the next row's
        FilledRow((1, 2), (7,), torch.tensor([0.9])),
        FilledRow((), (4, 5, 6), torch.tensor([1.0, 0.5, 0.8])),
    ]
    # breaks after 4 and after 4, 5: .1 * (1 * .5) and .1 * (1 * .5 * .2)
    assert likely_second_breaks(posterior, redrafts) == [(4,), (4, 5)]


def test_a_sure_second_break_behind_an_unlikely_first_one_comes_last():
    posterior = torch.tensor([0.05, 0.6])
    redrafts = [
        FilledRow((), (4, 5), torch.tensor([1.0, 0.1])),  # .05 * .9
        FilledRow((1,), (2, 3), torch.tensor([0.5, 0.5])),  # .6 * .25
    ]
    assert likely_second_breaks(posterior, redrafts) == [(1, 2), (4,)]


def test_three_levels_hold_at_most_nine_rows():
    table = random_table(30, scale=3.0)
    first, second = (MarkovProposer(table, 16, noise=1.0, seed=seed) for seed in (1, 2))
    for anchor in range(30):
        tree = ThreeLevelDrafter(first, second).draft(context_of([0, anchor]))
        leaves = set(range(len(tree))) - set(tree.parents)
        assert 1 < len(leaves) <= 9
        assert max(tree.depths) == 15
