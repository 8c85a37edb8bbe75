import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2sd.drafters.hits import LONGEST, Average, HitRates, Regression


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30), st.integers(2, 50))
def test_an_average_forgets_geometrically(values, memory):
    average = Average(1.0, 2.0, memory)
    for value in values:
        average.add(value)
    weights = [(1 - 1 / memory) ** age for age in reversed(range(len(values)))]
    kept = (1 - 1 / memory) ** len(values)
    total = kept + sum(w * v for w, v in zip(weights, values, strict=True))
    assert average.value == pytest.approx(total / (2 * kept + sum(weights)))


def test_age_keeps_the_value_and_loses_evidence_down_to_one_unit():
    average = Average(60.0, 20.0)
    average.age()
    assert average.value == pytest.approx(3.0)
    assert 19 < average.units < 20
    for _ in range(1000):
        average.age()
    assert (average.value, average.units) == (pytest.approx(3.0), pytest.approx(1.0))
    average.add(0.0)
    assert average.value < 1.6  # one new observation now weighs half


def test_longer_matches_are_trusted_more_at_first():
    hits = HitRates()
    rates = [hits.chance(matched) for matched in range(1, LONGEST + 1)]
    assert rates == sorted(rates)
    assert 0.2 < rates[0] < 0.3
    assert 0.9 < rates[-1] < 1
    assert hits.chance(1000) == rates[-1]


def test_a_rate_is_learned_and_its_neighbours_stay():
    hits = HitRates()
    before = hits.chance(5)
    for number in range(400):
        hits.add(4, None, number % 4 == 0)
    assert hits.chance(4) == pytest.approx(0.25, abs=0.06)
    assert hits.chance(5) == before


def judged(hits, law, rounds=600):
    """Let `hits` see tokens whose truth follows `law(opinion)`, all after a match of 3."""
    rng = random.Random(1)
    for _ in range(rounds):
        opinion = rng.choice([0.05, 0.3, 0.6, 0.9])
        hits.add(3, opinion, rng.random() < law(opinion))


def test_an_honest_pass_is_believed_in_the_end():
    hits = HitRates()
    judged(hits, lambda opinion: opinion)
    for opinion in (0.05, 0.3, 0.6, 0.9):
        assert hits.chance(3, opinion) == pytest.approx(opinion, abs=0.15)


def test_a_pass_that_knows_nothing_is_ignored_in_the_end():
    hits = HitRates()
    judged(hits, lambda opinion: 0.7)
    for opinion in (0.05, 0.3, 0.6, 0.9):
        assert hits.chance(3, opinion) == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize("opinion", [0.0, 1.0])
def test_certain_opinions_can_be_told_wrong(opinion):
    hits = HitRates()
    for _ in range(300):
        hits.add(3, opinion, opinion == 0.0)
    assert abs(hits.chance(3, opinion) - opinion) > 0.5


def test_a_regression_finds_the_weights_of_a_law():
    rng = random.Random(2)
    law, regression = (1.5, -0.7), Regression((0.0, 0.0), drift=0.0)
    for _ in range(3000):
        features = (rng.uniform(-2, 2), 1.0)
        chance = 1 / (1 + math.exp(-sum(w * f for w, f in zip(law, features, strict=True))))
        regression.add(features, rng.random() < chance)
    for place in (-1.5, 0.0, 1.5):
        chance = 1 / (1 + math.exp(-(1.5 * place - 0.7)))
        assert regression.chance((place, 1.0)) == pytest.approx(chance, abs=0.06)


def test_a_regression_follows_a_law_that_changes():
    regression = Regression((0.0,))
    for truth in (True, False):
        for _ in range(200):
            regression.add((1.0,), truth)
        assert (regression.chance((1.0,)) > 0.8) == truth
        assert (regression.chance((1.0,)) < 0.2) != truth
