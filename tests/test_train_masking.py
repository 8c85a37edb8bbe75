"""Anchors, visible prefixes and learned slots."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd.train.batches import BlockRecipe, cut_blocks
from d2sd.train.features import FeatureSource, Rows, StoreIndex
from d2sd.train.masking import (
    SURPRISE_FLOOR,
    AnchorOnly,
    Mixture,
    Reanchored,
    TruncatedGeometric,
    emitted_probs,
    learned_slots,
    sample_anchors,
)

BLOCKS = 40_000
CHI2 = {0: 1e-9, 1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}
"""0.1 % points by degrees of freedom."""


def check_law(drawn, mass):
    """Draws of 1, 2, ... against unnormalised masses, a mass of 0 included, by chi-square."""
    seen = torch.bincount(drawn, minlength=len(mass) + 1)[1:].tolist()
    assert len(seen) == len(mass)
    pairs = [(s, len(drawn) * m / sum(mass)) for s, m in zip(seen, mass, strict=True)]
    assert all(s == 0 for s, e in pairs if e == 0)
    likely = [(s, e) for s, e in pairs if e > 0]
    assert sum((s - e) ** 2 / e for s, e in likely) < CHI2[len(likely) - 1]


def rng(seed=1):
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 9), st.integers(2, 30), st.integers(1, 40), st.integers(0, 99))
def test_anchors_have_a_successor_and_are_prompt_end_or_answer(prompt, answer, count, seed):
    length = prompt + answer
    anchors = sample_anchors(prompt, length, count, torch.Generator().manual_seed(seed))
    assert len(anchors) == count
    assert anchors.tolist() == sorted(anchors.tolist())
    assert prompt - 1 <= anchors.min()
    assert anchors.max() <= length - 2
    if count <= answer:
        assert len(set(anchors.tolist())) == count


def test_the_first_drafter_sees_the_anchor_alone():
    assert AnchorOnly().draw(5, 8, torch.Generator()).tolist() == [1] * 5


def test_the_visible_prefix_is_truncated_geometric_and_includes_the_anchor_only_case():
    drawn = TruncatedGeometric(0.7).draw(BLOCKS, 6, rng())
    check_law(drawn, [0.7**j for j in range(5)])  # the last slot is always masked


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_one_network_for_both_passes_sees_the_anchor_alone_in_the_given_share(share):
    drawn = Mixture(share, 0.7).draw(BLOCKS, 6, rng())
    rest = [0.7**j for j in range(1, 5)]
    check_law(drawn, [share, *((1 - share) * m / sum(rest) for m in rest)])


def test_a_block_of_two_has_nothing_but_its_anchor_to_show():
    emitted = torch.rand(9, 2)
    assert Mixture(0.1).draw(9, 2, rng()).tolist() == [1] * 9
    assert Reanchored().draw(9, 2, rng(), lambda: emitted).tolist() == [1] * 9


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_reanchored_prefixes_end_at_surprising_tokens(share):
    # slot 0 is the anchor, the last slot is never visible: neither's probability may matter
    one = torch.tensor([0.0, 0.9, 0.2, 0.5, 0.8, 0.0])
    other = torch.tensor([0.0, 0.1, 0.6, 0.6, 0.0, 0.0])
    emitted = torch.stack([one, other]).repeat(BLOCKS, 1)
    drawn = Reanchored(0.7, share).draw(2 * BLOCKS, 6, rng(), lambda: emitted)
    for row, probs in enumerate([one, other]):
        mass = [0.7**j * (1 - probs[j].item()) for j in range(1, 5)]
        wanted = [share, *((1 - share) * m / sum(mass) for m in mass)]
        check_law(drawn[row::2], wanted)


def test_where_the_target_is_sure_of_all_the_floor_leaves_the_geometric_law():
    emitted = torch.ones(BLOCKS, 5)
    drawn = Reanchored(0.5).draw(BLOCKS, 5, rng(), lambda: emitted)
    check_law(drawn, [0, 0.5, 0.25, 0.125])


def test_one_doubt_among_certainties_is_nearly_always_chosen():
    emitted = torch.ones(BLOCKS, 5)
    emitted[:, 2] = 0
    drawn = Reanchored(1.0).draw(BLOCKS, 5, rng(), lambda: emitted)
    check_law(drawn, [0, SURPRISE_FLOOR, 1, SURPRISE_FLOOR])


@given(st.integers(2, 9), st.floats(0.1, 1), st.floats(0, 1), st.integers(0, 99))
def test_every_law_leaves_the_last_slot_masked_and_the_anchor_visible(size, decay, share, seed):
    emitted = torch.rand(30, size, generator=rng(seed))
    for prefix in (TruncatedGeometric(decay), Mixture(share, decay), Reanchored(decay, share)):
        drawn = prefix.draw(30, size, rng(seed), lambda: emitted)
        again = prefix.draw(30, size, rng(seed), lambda: emitted)
        assert drawn.tolist() == again.tolist()
        assert drawn.min() >= 1
        assert drawn.max() <= size - 1


def test_the_emitted_tokens_probability_is_found_among_the_labels_or_is_0():
    ids = torch.tensor([[3, 5], [7, 2], [4, 1], [6, 0]])
    probs = torch.tensor([[0.7, 0.2], [0.6, 0.3], [0.5, 0.4], [0.9, 0.05]])
    found = emitted_probs(ids, probs, torch.tensor([5, 7, 8, -1]))
    assert found.tolist() == pytest.approx([0.2, 0.6, 0, 0])


def test_laws_that_cannot_be_are_refused_by_name():
    for make in (TruncatedGeometric, lambda d: Mixture(0.5, d), Reanchored):
        with pytest.raises(ValueError, match=r"prefix decay is 0\.0; it must be above 0"):
            make(0.0)
    for make in (Mixture, lambda share: Reanchored(0.9, share)):
        with pytest.raises(ValueError, match=r"anchor share is 1\.5; it must be from 0 to 1"):
            make(1.5)


class OneSequence(FeatureSource):
    """Eight tokens after a prompt of two; in the target's eyes only one of them is doubtful.

    Draft ids are the target's ids backwards, so that mixing them up shows.
    """

    index = StoreIndex((0,), 3, (0, 8), (2,), (0.0,), tuple(range(20, -1, -1)))
    tokens = torch.tensor([11, 12, 13, 14, 15, 16, 17, 18])
    doubtful = 4

    def read(self, sequences):
        following = self.tokens.roll(-1)  # candidates for a token lie in the row before it
        probs = torch.where(following == self.tokens[self.doubtful], 0.0, 1.0)
        ids = torch.stack([20 - following, following * 0], -1)
        soft = torch.stack([probs, probs * 0], -1).bfloat16()
        return [Rows(torch.zeros(8, 1, 3), ids, soft, self.tokens) for _ in sequences]


def test_blocks_are_cut_with_prefixes_that_end_at_the_doubtful_token():
    anchors = [torch.tensor([1, 2, 3]).repeat(50)]
    recipe = BlockRecipe(5, 0, Reanchored(1.0))
    batch = cut_blocks(OneSequence(), [0], anchors, recipe, [rng()])
    last_visible = batch.anchors + batch.visible - 1
    assert (last_visible == OneSequence.doubtful).float().mean() > 0.95
    # from position 5 on all is sure, or past the end: the geometric law with decay 1
    sure = cut_blocks(OneSequence(), [0], [torch.tensor([5] * 300)], recipe, [rng()])
    assert torch.bincount(sure.visible[0], minlength=5)[2:].min() > 60


def test_learned_slots_run_from_the_first_masked_one_to_the_end_of_the_answer():
    learned = learned_slots(torch.tensor([3, 6, 4]), torch.tensor([1, 3, 2]), 9, 5)
    assert learned.int().tolist() == [[0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]
