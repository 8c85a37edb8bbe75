"""Fitted temperatures and the calibration error."""

import torch

from d2sd.train.calibrate import SlotLogits, best_temperature, by_distance, calibration_error


def test_the_temperature_that_made_the_labels_is_found():
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 5, generator=rng)
    labels = torch.multinomial((logits / 1.8).softmax(-1), 1, generator=rng)[:, 0]
    assert 1.7 < best_temperature(SlotLogits(logits, labels)) < 1.9


def test_calibration_error_is_the_gap_of_confidence_and_hit_rate():
    confidence = torch.tensor([0.9] * 10 + [0.3] * 10)
    right = torch.tensor([True] * 9 + [False] + [True] * 8 + [False] * 2)
    assert abs(calibration_error(confidence, right) - 0.25) < 1e-6


def test_slots_count_only_while_the_draft_before_them_was_right():
    labels = torch.tensor([[0, 1, 2], [0, 1, 2]])
    logits = torch.full((2, 3, 4), -9.0)
    for block, guesses in enumerate([(0, 1, 2), (3, 1, 2)]):
        for slot, guess in enumerate(guesses):
            logits[block, slot, guess] = 9.0
    visible = torch.tensor([1, 1])
    groups = by_distance(logits, labels, visible, torch.ones(2, 3, dtype=torch.bool))
    assert [len(g.labels) for g in groups] == [2, 1, 1]
    shifted = by_distance(logits, labels, torch.tensor([2, 2]), torch.ones(2, 3, dtype=torch.bool))
    assert [len(g.labels) for g in shifted] == [2, 2, 0]  # a visible slot can't be wrong
