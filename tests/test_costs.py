"""The cost table's laws: exact where measured, straight between, never falling."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2sd.costs import CostTable, rising

TABLE = CostTable(
    nodes=(1, 4, 8),
    contexts=(64, 512),
    target=((0.010, 0.020), (0.011, 0.025), (0.020, 0.030)),
    rows=(1, 4),
    first=((0.001, 0.002), (0.002, 0.004)),
    second=((0.003, 0.004), (0.006, 0.008)),
    overhead=0.001,
)

counts = st.lists(st.integers(1, 200), min_size=1, max_size=5, unique=True).map(sorted)
seconds = st.floats(1e-6, 10)


@st.composite
def tables(draw) -> dict:
    """What to make a table of: inside a strategy beartype's random checks are not allowed."""
    nodes, contexts, rows = draw(counts), draw(counts), draw(counts)

    def grid(sizes):
        columns = [
            sorted(draw(st.lists(seconds, min_size=len(sizes), max_size=len(sizes))))
            for _ in contexts
        ]
        return tuple(zip(*columns, strict=True))

    target, first = grid(nodes), grid(rows)
    return {
        "nodes": tuple(nodes),
        "contexts": tuple(contexts),
        "target": target,
        "rows": tuple(rows),
        "first": first,
        "second": (),
        "overhead": 0.0,
    }


@given(tables())
def test_a_lookup_at_a_measured_point_is_the_measurement(values: dict) -> None:
    table = CostTable(**values)
    for nodes, row in zip(table.nodes, table.target, strict=True):
        for context, measured in zip(table.contexts, row, strict=True):
            assert table.target_seconds(nodes, context) == pytest.approx(measured)
    for rows, row in zip(table.rows, table.first, strict=True):
        for context, measured in zip(table.contexts, row, strict=True):
            assert table.first_seconds(context, rows) == pytest.approx(measured)


@given(tables(), st.integers(0, 1000), st.integers(1, 400))
def test_more_nodes_never_cost_less(values: dict, context: int, nodes: int) -> None:
    table = CostTable(**values)
    fewer, more = (table.target_seconds(n, context) for n in (nodes, nodes + 1))
    assert fewer <= more * (1 + 1e-9)
    assert fewer > 0


@given(tables(), st.integers(0, 1000))
def test_a_row_holds_the_lookups_of_every_node_count(values: dict, context: int) -> None:
    table = CostTable(**values)
    row = table.target_row(context)
    assert len(row) == table.nodes[-1]
    expected = [table.target_seconds(n, context) for n in range(1, table.nodes[-1] + 1)]
    assert row == pytest.approx(expected)


@given(tables(), st.integers(1, 200))
def test_beyond_the_last_context_time_goes_on_straight(values: dict, nodes: int) -> None:
    table = CostTable(**values)
    last = table.contexts[-1]
    at = [table.target_seconds(nodes, last + far) for far in (0, 1, 100, 200)]
    assert at[0] <= at[1] * (1 + 1e-9)
    assert at[3] - at[2] == pytest.approx(at[2] - at[0], abs=1e-9)


def test_between_points_it_is_linear_in_both_directions() -> None:
    assert TABLE.target_seconds(6, 64) == pytest.approx(0.0155)
    assert TABLE.target_seconds(4, 288) == pytest.approx(0.018)
    assert TABLE.target_seconds(6, 288) == pytest.approx((0.0155 + 0.0275) / 2)
    assert TABLE.second_seconds(288, 1) == pytest.approx(0.0035)
    assert TABLE.second_seconds(64, 3) == pytest.approx(0.005)
    assert TABLE.first_seconds(64) == 0.001


def test_below_the_first_point_it_is_flat_and_beyond_the_last_it_rises() -> None:
    assert TABLE.target_seconds(1, 1) == 0.010
    later = replace(TABLE, nodes=(3, 4, 8))
    assert later.target_seconds(1, 64) == later.target_seconds(3, 64) == 0.010
    assert TABLE.target_seconds(12, 64) == pytest.approx(0.020 + 4 * 0.009 / 4)
    assert TABLE.target_seconds(1, 960) == pytest.approx(0.030)
    assert TABLE.first_seconds(64, 7) == pytest.approx(0.003)


def test_a_last_stretch_without_rise_does_not_make_the_rest_free() -> None:
    level = replace(TABLE, target=((0.010, 0.020), (0.020, 0.025), (0.020, 0.025)))
    assert level.target_seconds(15, 64) == pytest.approx(0.020 + 7 * 0.010 / 7)


def test_json_gives_the_table_back() -> None:
    for table in (TABLE, replace(TABLE, first=(), second=())):
        assert CostTable.from_json(json.loads(json.dumps(table.to_json()))) == table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nodes": ()}, "nodes are"),
        ({"nodes": (1, 8, 4)}, "ascending"),
        ({"contexts": (0, 64)}, "ascending"),
        ({"rows": (1, 1)}, "rows are"),
        ({"target": ((0.010, 0.020),)}, "not 3 rows of 2"),
        ({"second": ((0.003,), (0.006,))}, "not 2 rows of 2"),
        ({"first": ((0.0, 0.002), (0.002, 0.004))}, "above 0"),
        ({"first": ((math.nan, 0.002), (0.002, 0.004))}, "above 0"),
        ({"first": ((0.003, 0.002), (0.002, 0.004))}, "first falls"),
        ({"overhead": -1e-3}, "overhead"),
    ],
)
def test_a_table_that_cannot_be_is_refused(change, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TABLE, **change)


@pytest.mark.parametrize("damage", [{"rows": None}, {"target": 3}, {"overhead": "x"}])
def test_damaged_json_is_refused(damage) -> None:
    with pytest.raises(ValueError, match="cost table"):
        CostTable.from_json({**TABLE.to_json(), **damage})
    short = TABLE.to_json()
    del short["first"]
    with pytest.raises(ValueError, match="measure it anew"):
        CostTable.from_json(short)


def test_what_was_not_measured_cannot_be_looked_up() -> None:
    bare = replace(TABLE, first=(), second=())
    with pytest.raises(ValueError, match="no first drafter"):
        bare.first_seconds(64)
    with pytest.raises(ValueError, match="no second drafter"):
        bare.second_seconds(64, 2)


@given(st.lists(seconds, max_size=12))
def test_rising_values_are_the_nearest_that_never_fall(values: list[float]) -> None:
    cleaned = rising(values)
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(cleaned))
    assert sum(cleaned) == pytest.approx(sum(values))
    if values == sorted(values):
        assert cleaned == pytest.approx(values)


def test_rising_replaces_neighbours_that_fall_by_their_mean() -> None:
    assert rising([1.0, 3.0, 2.0, 4.0]) == (1, 2.5, 2.5, 4)
    assert rising([3.0, 2.0, 1.0]) == (2, 2, 2)
