import torch

from d2sd.drafters.block import BlockDrafter, fill
from d2sd.drafters.none import NoDrafter
from d2sd.drafters.proposer import Proposal, Proposer
from fakes import MarkovProposer, ScriptedProposer, context_of, draw, random_table, spread


def test_no_drafter_gives_the_anchor_alone():
    assert draw(NoDrafter().draft(context_of([4, 9]))) == "9 anchor"


def test_block_gives_the_chain_of_most_probable_tokens():
    rows = torch.stack([spread({3: 0.9}, 8), spread({5: 0.4, 2: 0.3}, 8), spread({3: 0.2}, 8)])
    proposer = ScriptedProposer(4, {(): rows})
    tree = BlockDrafter(proposer).draft(context_of([1, 7]))
    assert draw(tree) == "\n".join(
        [
            "7 anchor",
            ". 3 first",
            ". . 5 first",
            ". . . 3 first",
        ]
    )
    assert proposer.passes == [(((7,),), 4)]


def test_block_size_can_be_chosen():
    proposer = MarkovProposer(random_table(6), block_size=4)
    assert len(BlockDrafter(proposer, block_size=9).draft(context_of([2]))) == 9


def test_fill_keeps_what_a_row_shows_and_says_how_sure_the_rest_is():
    tables = {
        (4,): torch.stack([spread({0: 1.0}, 6), spread({5: 0.75}, 6), spread({2: 0.5}, 6)]),
        (4, 1): torch.stack([spread({0: 1.0}, 6), spread({0: 1.0}, 6), spread({3: 0.25}, 6)]),
    }
    rows = fill(ScriptedProposer(4, tables), context_of([7]), [(4,), (4, 1)], 4)
    assert [row.tokens for row in rows] == [(4, 5, 2), (4, 1, 3)]
    assert [row.confidence.tolist() for row in rows] == [[0.75, 0.5], [0.25]]


def test_fill_of_no_rows_makes_no_pass():
    proposer = ScriptedProposer(4, {})
    assert fill(proposer, context_of([7]), [], 4) == []
    assert proposer.passes == []


class NarrowProposer(Proposer):
    """Speaks a draft vocabulary of two tokens, 11 and 30 of the target's."""

    block_size = 3

    def propose(self, context, visible, block_size=None):
        probs = torch.tensor([[[0.2, 0.8], [0.7, 0.3]]])
        return Proposal.from_probs(probs, torch.tensor([11, 30]))


def test_draft_tokens_become_the_targets():
    assert BlockDrafter(NarrowProposer()).draft(context_of([0])).tokens == (0, 30, 11)
