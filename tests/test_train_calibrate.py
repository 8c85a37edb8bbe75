"""Fitted temperatures and the calibration error."""

import json

import pytest
import torch

from d2sd.drafters.config import DraftConfig
from d2sd.train.calibrate import (
    FEWEST_SLOTS,
    TEMPERATURES,
    LossCurves,
    SlotLogits,
    best_temperature,
    best_temperatures,
    by_distance,
    calibration_error,
    candidate_losses,
    fit_temperatures,
    loss_curves,
    lowest,
    write_temperatures,
)
from drafters import drafter_json


def drawn(temperature: float, slots: int = 4000, seed: int = 0, outside: float = 0.0) -> SlotLogits:
    """Slots whose tokens are drawn at `temperature`; a share of them from other vocabularies."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(slots, 5, generator=rng)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)[:, 0]
    labels[torch.rand(slots, generator=rng) < outside] = -1
    return SlotLogits(logits, labels)


@pytest.mark.parametrize("temperature", [0.55, 1.8])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    assert best_temperature(drawn(temperature)) == pytest.approx(temperature, rel=0.06)


def test_tokens_outside_the_vocabulary_make_a_drafter_less_sure() -> None:
    inside, outside = best_temperature(drawn(1.0)), best_temperature(drawn(1.0, outside=0.2))
    assert outside > 1.2 * inside


def test_losses_are_those_of_a_slow_reading() -> None:
    """Every candidate is accepted or not: the squared error of each, summed."""
    slots = drawn(1.0, slots=4, outside=0.4)
    assert -1 in slots.labels.tolist()
    ours = candidate_losses(slots)
    for slot, label in enumerate(slots.labels.tolist()):
        for column in (0, 10, 20):
            q = (slots.logits[slot].double() / TEMPERATURES[column]).softmax(-1).tolist()
            wanted = sum((c - (v == label)) ** 2 for v, c in enumerate(q))
            assert float(ours[slot, column]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_between_tried_values_the_parabola_decides() -> None:
    for wanted in (0.41, 0.77, 1.0, 2.2):
        losses = (TEMPERATURES.log() - torch.tensor(wanted).log()).square()
        assert lowest(losses) == pytest.approx(wanted, rel=1e-3)
    assert lowest(TEMPERATURES) == pytest.approx(float(TEMPERATURES[0]), rel=0.01)
    assert lowest(-TEMPERATURES) == pytest.approx(float(TEMPERATURES[-1]), rel=0.01)


def test_curves_add_up_whatever_their_lengths() -> None:
    groups = [drawn(t, 300, seed) for seed, t in enumerate((0.7, 1.0, 1.6))]
    whole = loss_curves(groups)
    halves = [
        [SlotLogits(group.logits[half::2], group.labels[half::2]) for group in groups]
        for half in (0, 1)
    ]
    added = loss_curves(halves[0]) + loss_curves(halves[1][:2]) + LossCurves.empty(0)
    torch.testing.assert_close(added.losses[:2], whole.losses[:2])
    assert added.slots.tolist() == [300, 300, 150]
    assert best_temperatures(added)[:2] == best_temperatures(whole)[:2]


def test_a_rare_distance_is_fitted_with_those_before_it() -> None:
    often, rare = drawn(0.6, 2000), drawn(2.5, FEWEST_SLOTS // 4, seed=1)
    found = best_temperatures(loss_curves([often, rare]))
    assert found[1] == pytest.approx(found[0], rel=0.2)
    alone = best_temperatures(loss_curves([rare]))
    assert alone[0] > 1.5
    assert best_temperatures(LossCurves.empty(2)) == (1.0, 1.0)


def test_several_sequences_are_fitted_together() -> None:
    parts = [[drawn(0.7, 900, seed), drawn(1.5, 900, seed + 9)] for seed in (1, 2)]
    assert fit_temperatures(parts) == pytest.approx((0.7, 1.5), rel=0.08)


def test_calibration_error_is_the_gap_of_confidence_and_hit_rate() -> None:
    confidence = torch.tensor([0.9] * 10 + [0.3] * 10)
    right = torch.tensor([True] * 9 + [False] + [True] * 8 + [False] * 2)
    assert abs(calibration_error(confidence, right) - 0.25) < 1e-6


def test_slots_count_only_while_the_draft_before_them_was_right() -> None:
    labels = torch.tensor([[0, 1, 2], [0, 1, 2]])
    logits = torch.full((2, 3, 4), -9.0)
    for block, guesses in enumerate([(0, 1, 2), (3, 1, 2)]):
        for slot, guess in enumerate(guesses):
            logits[block, slot, guess] = 9.0
    visible = torch.tensor([1, 1])
    known = torch.ones(2, 3, dtype=torch.bool)
    groups = by_distance(logits, labels, visible, known)
    assert [len(g.labels) for g in groups] == [2, 1, 1]
    shifted = by_distance(logits, labels, torch.tensor([2, 2]), known)
    assert [len(g.labels) for g in shifted] == [2, 2, 0]  # a visible slot can't be wrong
    outside = by_distance(logits, torch.tensor([[0, -1, 2], [-1, 1, 2]]), visible, known)
    assert [g.labels.tolist() for g in outside] == [[0, -1], [-1], []]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {0.0: (0.7, 0.9)}),
        ([1.5, 1.4], {0.0: (0.7, 0.9)}),
        ({"0": [1.5], "1": [2.0]}, {0.0: (0.7, 0.9), 1.0: (2.0,)}),
    ],
)
def test_temperatures_are_written_beside_those_of_other_decodings(before, after, tmp_path) -> None:
    inner = {"mask_token_id": 96, "target_layer_ids": [0, 2], "temperatures": before}
    (tmp_path / "config.json").write_text(json.dumps(drafter_json(dflash_config=inner)))
    write_temperatures(tmp_path, {0.0: (0.7, 0.9)})
    values = json.loads((tmp_path / "config.json").read_text())
    config = DraftConfig.from_json(values)
    assert config.temperatures == after
    assert (config.mask_token_id, values["block_size"]) == (96, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
