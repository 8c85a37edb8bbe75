"""The planner's choices against slow references that try everything."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2sd.drafters.planner import (
    LEVELS,
    Estimates,
    Probes,
    best_budget,
    best_count,
    second_rows,
)

seconds = st.lists(st.floats(0.001, 2.0), min_size=1, max_size=9)
rates = st.floats(0.01, 20.0)
chances = st.lists(st.floats(0.0, 1.0), max_size=8).map(lambda c: sorted(c, reverse=True))


def every_value(gains, table, rate):
    """What each number of gains is worth, plain sums."""
    most = min(len(gains), len(table) - 1)
    return [sum(gains[:count]) - rate * table[count] for count in range(most + 1)]


@given(st.lists(st.floats(-1.0, 1.0), max_size=8), seconds, rates)
def test_the_count_is_the_best_of_all_counts(gains, table, rate):
    values = every_value(gains, table, rate)
    choice = best_count(gains, table, rate)
    assert choice.value == pytest.approx(max(values))
    assert values[choice.count] == pytest.approx(max(values))


def test_of_equal_values_the_least_count_is_taken():
    assert best_count([0.5, 0.5, 0.5], [1.0, 1.5, 2.0, 2.5], rate=1.0).count == 0
    assert best_count([1.0, 0.5, 0.5], [1.0, 1.5, 2.0, 2.5], rate=1.0).count == 1


def test_a_dear_node_before_cheap_ones_is_no_wall():
    table = [1.0, 1.9, 1.9, 1.9, 1.9]  # passes padded to 1 and 5 nodes
    assert best_count([0.4, 0.4, 0.4, 0.4], table, rate=1.0).count == 4


@given(chances, seconds, rates, st.floats(0.5, 1.5))
def test_the_budget_is_the_best_of_all_budgets(paths, table, rate, kept):
    most = min(len(paths), len(table) - 1)
    values = [1 + kept * sum(paths[:n]) - rate * table[n] for n in range(most + 1)]
    choice = best_budget(paths, table, rate, kept)
    assert choice.value == pytest.approx(max(values))
    assert values[choice.count] == pytest.approx(max(values))


@given(chances, seconds, rates, st.floats(-1.0, 3.0))
def test_the_rows_are_the_best_of_all_numbers_of_rows(masses, table, rate, lift):
    table = [0.0, *table]
    values = every_value([lift * mass for mass in masses], table, rate)
    choice = second_rows(masses, lift, table, rate)
    assert choice.value == pytest.approx(max(values))
    assert values[choice.count] == pytest.approx(max(values))
    assert choice.value >= 0  # no second pass is always possible


@st.composite
def machines(draw):
    """Chances of paths after no, a first, a second pass with 0 to 3 rows; and what all costs."""
    growing = st.lists(st.floats(0.0, 0.2), min_size=6, max_size=6)
    target = [draw(st.floats(0.2, 2.0)) + total for total in itertools.accumulate(draw(growing))]
    target.sort()
    passes = list(itertools.accumulate([0.0, *(draw(st.floats(0.01, 0.5)) for _ in range(4))]))
    paths = [[]] + [draw(st.lists(st.floats(0, 1), min_size=5, max_size=5)) for _ in range(4)]
    return target, passes, [sorted(chances, reverse=True) for chances in paths]


@given(machines())
def test_choosing_by_value_reaches_the_best_rate_of_all_plans(machine):
    """Dinkelbach: the plan worth most at the rate so far, again and again."""
    target, passes, paths = machine
    plans = [
        ((1 + sum(chances[:budget])) / (before + target[budget]))
        for before, chances in zip(passes, paths, strict=True)
        for budget in range(len(chances) + 1)
    ]
    rate = 1 / target[0]
    for _ in range(20):
        options = [
            (best_budget(chances, target, rate), before, chances)
            for before, chances in zip(passes, paths, strict=True)
        ]
        choice, before, chances = max(options, key=lambda o: o[0].value - rate * o[1])
        rate = (1 + sum(chances[: choice.count])) / (before + target[choice.count])
    assert rate == pytest.approx(max(plans))


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 1)), max_size=60))
def test_probes_never_take_more_than_their_share(steps):
    probes = Probes(share=0.1)
    for elapsed, asked in steps:
        probes.elapsed += elapsed
        before = probes.spent
        taken = probes.take(asked)
        assert probes.spent == before + taken * asked
        assert probes.spent <= 0.1 * probes.elapsed


def test_probes_are_taken_when_there_is_time():
    probes = Probes(share=0.1, elapsed=10.0)
    assert probes.take(0.7)
    assert not probes.take(0.7)
    assert probes.take(0.3)


def test_decoding_is_taken_to_be_plain_at_first():
    assert Estimates(0.25).rate.value == pytest.approx(4.0)


def test_levels_part_by_the_copied_tokens_expected():
    estimates = Estimates(1.0)
    assert estimates.level(0.0) is estimates.gain[0]
    assert [estimates.level(least) for least in LEVELS] == estimates.gain[1:]
    assert estimates.level(1e9) is estimates.gain[-1]


def test_corrections_are_bounded():
    estimates = Estimates(1.0)
    for _ in range(500):
        estimates.trust[0].add(0.0, 1.0)
        estimates.kept[True].add(30.0, 1.0)
        estimates.slowness[0].add(100.0)
    assert (estimates.trusted(0), estimates.trusted(1)) == (0.05, 1.0)
    assert (estimates.kept_share(True), estimates.kept_share(False)) == (1.5, 1.0)
    assert (estimates.slow(0), estimates.slow(1)) == (4.0, 1.0)
