from collections import Counter

import pytest
import torch

from d2sd.drafters.block import BlockDrafter
from d2sd.drafters.boundary import likely_boundaries, rejection_posterior
from d2sd.drafters.dual import DualDrafter
from d2sd.drafters.falsify import (
    RandomBoundaries,
    UnseenPrefixProposer,
    early_boundaries,
    even_boundaries,
)
from d2sd.drafters.policies import build_drafter, parse_policy
from d2sd.drafters.proposer import Proposal, Proposer
from fakes import (
    MarkovProposer,
    ScriptedProposer,
    context_of,
    draw,
    paths_of,
    random_table,
    spread,
)

VOCAB, ANCHOR = 40, 9
CONTEXT = context_of([0, ANCHOR])
CHAIN = (11, 12, 13, 14, 15, 16, 17)
LATE = (0.99, 0.99, 0.99, 0.99, 0.5, 0.5, 0.5)  # will most likely break after 4, 5 or 6 tokens
EARLY = (0.5, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9)


def slots(tokens, confidence):
    rows = [spread({t: c}, VOCAB) for t, c in zip(tokens, confidence, strict=True)]
    return torch.stack(rows)


class Echo(Proposer):
    """Notes what it is shown, and drafts token 30 + s at every slot s."""

    def __init__(self):
        self.block_size = 8
        self.seen = []

    def propose(self, context, visible, block_size=None):
        self.seen.append((list(visible), block_size))
        tokens = range(30, 29 + (block_size or 8))
        rows = slots(tokens, [0.6] * len(tokens))
        return Proposal.from_probs(torch.stack([rows] * len(visible)))

    def kept(self):
        return [len(row) - 1 for visible, _ in self.seen for row in visible]


def kept_by(policy, confidence):
    """How much of the chain each row of the second pass keeps."""
    second = Echo()
    first = ScriptedProposer(8, {(): slots(CHAIN, confidence)})
    build_drafter(parse_policy(policy), first, second).draft(CONTEXT)
    return second.kept()


@pytest.mark.parametrize(
    ("drafted", "branches", "boundaries"),
    [
        (7, 4, [0, 1, 3, 5]),
        (15, 4, [0, 3, 7, 11]),
        (15, 5, [0, 3, 6, 9, 12]),
        (7, 1, [0]),
        (3, 4, [0, 1, 2]),
    ],
)
def test_even_boundaries_start_equal_stretches_of_the_block(drafted, branches, boundaries):
    assert even_boundaries(torch.rand(drafted), branches) == boundaries


def test_early_boundaries_are_the_first_ones():
    assert early_boundaries(torch.rand(7), 4) == [0, 1, 2, 3]
    assert early_boundaries(torch.rand(3), 4) == [0, 1, 2]


@pytest.mark.parametrize(
    ("policy", "boundaries"), [("even-dual", [0, 1, 3, 5]), ("early-dual", [0, 1, 2, 3])]
)
def test_the_blind_arms_keep_the_same_prefixes_whatever_the_confidences(policy, boundaries):
    assert kept_by(policy, LATE) == kept_by(policy, EARLY) == boundaries
    assert kept_by("dual", LATE)[:3] == [4, 5, 6]  # the arm that is not blind
    assert kept_by("dual", EARLY)[:2] == [0, 1]
    assert kept_by(f"{policy}:branches=2,second_block_size=9", LATE)[-1] == len(CHAIN)


def test_random_boundaries_ignore_the_posterior_but_not_the_seed():
    posterior = torch.tensor([0.9, 0.05, 0.02, 0.02, 0.01])
    choose = RandomBoundaries(seed=3)
    picks = [tuple(choose(posterior, 2)) for _ in range(200)]
    assert all(len(set(pick)) == 2 and set(pick) <= set(range(5)) for pick in picks)
    assert set(Counter(pick[0] for pick in picks)) == set(range(5))
    again = RandomBoundaries(seed=3)
    assert picks == [tuple(again(posterior, 2)) for _ in range(200)]
    assert sorted(choose(posterior, 9)) == [0, 1, 2, 3, 4]


def test_unseen_redrafts_are_one_row_hung_behind_each_likely_prefix():
    chain, confidence = (11, 12, 13, 14, 15), (0.95, 0.84, 0.62, 0.70, 0.42)
    first = ScriptedProposer(6, {(): slots(chain, confidence)})
    second = ScriptedProposer(6, {(): slots((21, 22, 23, 14, 25), [0.6] * 5)})
    drafter = build_drafter(parse_policy("unseen-dual:branches=3"), first, second)
    assert draw(drafter.draft(CONTEXT)) == "\n".join(
        [
            "9 anchor",
            ". 11 first",
            ". . 12 first",
            ". . . 13 first",
            ". . . . 14 first",
            ". . . . . 15 first",
            ". . . . . 25 second@4",
            ". . . 23 second@2",
            ". . . . 14 second@2",
            ". . . . . 25 second@2",
            ". . 22 second@1",
            ". . . 23 second@1",
            ". . . . 14 second@1",
            ". . . . . 25 second@1",
        ]
    )
    assert second.passes == [(((ANCHOR,),), 6)]  # one row, of the anchor alone


@pytest.mark.parametrize("seed", range(5))
def test_unseen_differs_from_dual_in_its_tokens_only(seed):
    table = random_table(30, scale=3.0, seed=seed)
    first, second = (MarkovProposer(table, 8, noise=1.0, seed=s) for s in (seed, seed + 50))
    [chain] = [BlockDrafter(first).draft(CONTEXT).tokens[1:]]
    confidence = first.propose(CONTEXT, [(ANCHOR,)]).greedy().probs[0, :, 0]
    boundaries = likely_boundaries(rejection_posterior(confidence), 4)
    fixed = second.propose(CONTEXT, [(ANCHOR,)]).greedy().tokens[0, :, 0].tolist()
    rows = [chain, *((*chain[:kept], *fixed[kept:]) for kept in boundaries)]

    tree = DualDrafter(first, UnseenPrefixProposer(second)).draft(CONTEXT)
    assert paths_of(tree) == {tuple(row[:end]) for row in rows for end in range(1, 8)}
    assert paths_of(tree) != paths_of(DualDrafter(first, second).draft(CONTEXT))


def test_unseen_extends_the_whole_chain_where_the_second_block_is_longer():
    first = ScriptedProposer(8, {(): slots(CHAIN, LATE)})
    second = Echo()
    policy = parse_policy("unseen-dual:branches=1,second_block_size=10")
    tree = build_drafter(policy, first, second).draft(CONTEXT)
    assert (*CHAIN, 37, 38) in paths_of(tree)
    assert second.seen == [([(ANCHOR,)], 10)]


def test_a_first_pass_that_serves_as_the_unseen_second_one_adds_nothing():
    first = MarkovProposer(random_table(30), 8, noise=1.0)
    tree = build_drafter(parse_policy("unseen-dual"), first, None).draft(CONTEXT)
    assert tree.tokens == BlockDrafter(first).draft(CONTEXT).tokens


class Narrow(Proposer):
    """Speaks a draft vocabulary of two tokens, 11 and 30 of the target's, by its logits."""

    block_size = 3

    def propose(self, context, visible, block_size=None):
        whole = Proposal.from_probs(torch.tensor([[[0.2, 0.8], [0.6, 0.4]]]))
        return Proposal(whole.logits, whole.asked, torch.tensor([11, 30]))


def test_what_is_cut_keeps_the_draft_vocabulary_and_the_probabilities():
    cut = UnseenPrefixProposer(Narrow()).propose(CONTEXT, [(ANCHOR, 5), (ANCHOR,)])
    assert cut.greedy().tokens[..., 0].tolist() == [[0, 11], [30, 11]]
    assert cut.probs[0, 1].tolist() == pytest.approx([0.6, 0.4])
    assert cut.probs[1].flatten().tolist() == pytest.approx([0.2, 0.8, 0.6, 0.4])
