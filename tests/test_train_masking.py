"""Anchors, visible prefixes and slot weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2sd.train.masking import AnchorOnly, TruncatedGeometric, sample_anchors, slot_weights


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
    blocks, size, decay = 40_000, 6, 0.7
    drawn = TruncatedGeometric(decay).draw(blocks, size, torch.Generator().manual_seed(1))
    mass = [decay**j for j in range(size - 1)]
    expected = [blocks * m / sum(mass) for m in mass]
    seen = torch.bincount(drawn, minlength=size)[1:].tolist()
    chi2 = sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True))
    assert (drawn.min(), drawn.max()) == (1, size - 1)  # the last slot is always masked
    assert chi2 < 18.5  # 0.1 % point at 4 degrees of freedom


def test_slot_weights_fall_from_the_first_masked_slot_and_end_with_the_sequence():
    weights = slot_weights(torch.tensor([3, 6]), torch.tensor([1, 3]), 9, 5, decay=4.0)
    fall = [math.exp(-d / 4) for d in range(4)]
    assert weights[0].tolist() == pytest.approx([0, *fall])
    # block at 6: slots 1, 2 are visible, slot 3 is position 9, past the end
    assert weights[1].tolist() == [0, 0, 0, 0, 0]
