"""Honest confidences are found honest, shifted ones by how much they are shifted."""

from __future__ import annotations

import pytest
import torch

from d2sd.bench.reliability import Honesty, honesty, reliability
from d2sd.bench.replay import JudgedRow

RNG = torch.Generator().manual_seed(0)
SAID = torch.rand(40_000, generator=RNG, dtype=torch.float64)
DRAWN = torch.rand(40_000, generator=RNG, dtype=torch.float64)


def slow_reliability(said: list[float], held: list[bool], bins: int):
    """Bin by bin, as one would by hand: {bin: (count, mean said, share held)} and the error."""
    found: dict[int, tuple[int, float, float]] = {}
    for number in range(bins):
        inside = [i for i, s in enumerate(said) if min(int(s * bins), bins - 1) == number]
        if inside:
            mean = sum(said[i] for i in inside) / len(inside)
            found[number] = (len(inside), mean, sum(held[i] for i in inside) / len(inside))
    error = sum(count * abs(mean - share) for count, mean, share in found.values()) / len(said)
    return found, error


def test_bins_and_error_are_those_of_a_slow_reading() -> None:
    said, held = SAID[:500].square(), DRAWN[:500] < 0.6
    said[0] = 1.0  # belongs to the last bin
    ours = reliability(said, held, bins=10)
    found, error = slow_reliability(said.tolist(), held.tolist(), 10)
    assert ours.count == 500
    assert ours.error == pytest.approx(error)
    assert [(b.count, b.said, b.held) for b in ours.bins] == [
        pytest.approx(values) for values in found.values()
    ]
    assert [round(b.low * 10) for b in ours.bins] == list(found)
    assert all(b.low <= b.said <= b.high for b in ours.bins)


def test_honest_statements_have_no_error() -> None:
    assert reliability(SAID, DRAWN < SAID).error < 0.01


def test_few_honest_statements_err_by_chance() -> None:
    found = [
        reliability(SAID[i : i + 200], DRAWN[i : i + 200] < SAID[i : i + 200])
        for i in range(0, 20_000, 200)
    ]
    mean = sum(of.error for of in found) / len(found)
    assert mean > 0.05
    assert sum(of.chance for of in found) / len(found) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("shift", [0.1, -0.2])
def test_a_shift_is_the_error(shift: float) -> None:
    said = 0.3 + 0.4 * SAID
    assert reliability(said, said + shift > DRAWN).error == pytest.approx(abs(shift), abs=0.01)


def rows_of(confidence: torch.Tensor, held: torch.Tensor, **changes) -> list[JudgedRow]:
    """Chains of which slot k is right as `held` says while all before it are."""
    right = held.long().cumprod(-1).sum(-1).tolist()
    return [
        JudgedRow(**{"second": False, "kept": 0, "known": len(c), **changes}, confidence=c, right=r)
        for c, r in zip(map(tuple, confidence.tolist()), right, strict=True)
    ]


def chains(rows: int, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = SAID[: rows * slots].view(rows, slots).sqrt()
    return confidence, DRAWN[: rows * slots].view(rows, slots) < confidence


def test_honest_chains_have_an_honest_posterior() -> None:
    """Independent slots of known probability: what the paper's Eq. 4 takes for granted."""
    confidence, held = chains(8000, 5)
    found = honesty(rows_of(confidence, held))
    assert found.first is not None
    assert found.posterior is not None
    assert found.first.error < 0.015
    assert found.posterior.error < 0.01
    assert found.posterior.count == 8000 * 5
    assert [b.accepted for b in found.boundaries] == [0, 1, 2, 3, 4, 5]
    assert sum(b.said for b in found.boundaries) == pytest.approx(1)
    assert sum(b.held for b in found.boundaries) == pytest.approx(1)
    for boundary in found.boundaries:
        assert boundary.said == pytest.approx(boundary.held, abs=0.02)


def test_overconfident_chains_are_found_out() -> None:
    confidence, held = chains(8000, 5)
    found = honesty(rows_of(1 - 0.5 * (1 - confidence), held))
    assert found.first is not None
    assert found.posterior is not None
    assert found.first.error > 0.1
    assert found.posterior.error > 0.03
    assert found.boundaries[0].said < found.boundaries[0].held - 0.1


def test_slots_after_the_first_wrong_one_are_not_judged() -> None:
    row = JudgedRow(second=True, kept=2, confidence=(0.9, 0.8, 0.7), known=3, right=1)
    found = honesty([row])
    assert found.second is not None
    assert [(b.count, b.said, b.held) for b in found.second.bins] == [(1, 0.8, 0.0), (1, 0.9, 1.0)]
    assert (found.first, found.posterior, found.boundaries) == (None, None, ())


def test_an_answers_end_hides_boundaries_and_no_confidence() -> None:
    row = JudgedRow(second=False, kept=0, confidence=(0.9, 0.8, 0.7), known=2, right=2)
    found = honesty([row])
    assert found.first is not None
    assert found.first.count == 2
    assert found.posterior is None


def test_without_rows_nothing_is_judged() -> None:
    assert honesty([]) == Honesty(None, None, None, ())
