"""Figures by hand: from a raw log of a few answers to every number of a row."""

from __future__ import annotations

import pytest

from d2sd.bench.figures import calibrations, row, sections
from d2sd.bench.means import means
from d2sd.bench.records import Answer, Steps
from d2sd.bench.replay import JudgedRow
from d2sd.bench.results import Position, Results
from d2sd.bench.trials import Trial


def answer(emitted, seconds, tokens=None, depth=2, prefill_tokens=0, stages=None) -> Answer:
    """An answer whose steps drafted two nodes each and took `seconds` each."""
    count = len(emitted)
    steps = Steps(
        emitted=tuple(emitted),
        accepted=tuple(n - 1 for n in emitted),
        nodes=(2,) * count,
        depth=(depth,) * count,
        seconds=(seconds,) * count,
    )
    ids = tuple(tokens or range(sum(emitted) + prefill_tokens))
    return Answer("", ids, 5, steps, 1.0, prefill_tokens, stages or {}, {"first": count})


PLAIN = [(answer([1] * 4, 1.0, depth=0),), (answer([1] * 2, 1.0), answer([1] * 2, 1.0))]
OURS = [(answer([3, 1], 0.5),), (answer([2], 1.0), answer([2], 1.0, tokens=(7, 9)))]


def test_a_row_by_hand() -> None:
    got = row("s", OURS, PLAIN)
    assert (got.turns, got.new_tokens, got.steps) == (3, 8, 4)
    assert got.acceptance_length.value == 2.0
    assert got.acceptance_length_by_answer.value == pytest.approx((2 + 2 + 2) / 3)
    assert got.nodes_per_step == 2.0
    assert got.tokens_per_second == pytest.approx(8 / 3)
    assert got.tokens_per_second_with_prefill == pytest.approx(8 / 6)
    assert got.median_tokens_per_second == pytest.approx((4 + 2) / 2)
    assert got.quartiles == pytest.approx((2.5, 3.5))
    assert got.speedup is not None
    assert got.speedup.value == pytest.approx(8 / 3)
    assert got.speedup.low == pytest.approx(2.0)  # only the second prompt is drawn, twice
    assert got.speedup.high == pytest.approx(4.0)  # only the first
    assert got.speedup_with_prefill == pytest.approx((8 / 6) / (8 / 11))
    assert got.identical == 2  # the last token of the last turn differs
    assert got.histogram == (0, 1, 2, 1)
    # four drafts of depth 2: three had their first token right, one of these the second one too
    assert got.positions == (Position(1, 4, 3), Position(2, 3, 1))
    assert got.sources == {"first": 4}
    assert (got.stages_ms, got.overhead) == ({}, None)


def test_answers_weigh_alike_where_they_should() -> None:
    got = row("s", [(answer([5], 1.0), answer([1, 1, 1], 1.0))], None)
    assert got.acceptance_length.value == 2.0
    assert got.acceptance_length_by_answer.value == 3.0


def test_what_the_prefill_gave_is_not_decoded() -> None:
    peer = row("s", [(answer([1, 1, 1], 1.0, prefill_tokens=1),)], PLAIN[:1])
    assert peer.new_tokens == 4
    assert peer.acceptance_length.value == 1.0
    assert peer.tokens_per_second == pytest.approx(1.0)
    assert peer.tokens_per_second_with_prefill == pytest.approx(4 / 4)


def test_a_position_counts_only_where_a_draft_was_so_deep() -> None:
    got = row("s", [(answer([2, 1], 1.0, depth=1), answer([3, 1], 1.0, depth=2))], None)
    assert got.positions == (Position(1, 4, 2), Position(2, 1, 1))


def test_the_split_sums_to_the_time() -> None:
    stages = {"draft": 0.4, "draft 1": 0.3, "score": 0.5, "verify": 0.05, "commit": 0.01}
    got = row("s", [(answer([2, 2], 0.5, stages=stages),)], None)
    assert got.stages_ms["plan"] == pytest.approx(50)
    assert sum(got.stages_ms.values()) == pytest.approx(500)
    assert got.overhead == pytest.approx(0.2)


def test_intervals_hold_the_figure_and_shrink_with_more_prompts() -> None:
    few = [(answer([1 + n % 3], 1.0),) for n in range(6)]
    narrow, wide = row("s", few * 20, None).acceptance_length, row("s", few, None).acceptance_length
    assert wide.low < wide.value < wide.high
    assert wide.value == pytest.approx(narrow.value)
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2


def trial(suite, temperature, number, judged=(), **answers) -> Trial:
    return Trial(suite, temperature, number, f"p{number}", answers, judged)


def test_suites_weigh_alike_in_means() -> None:
    log = [
        trial("a", 0.0, 0, none=PLAIN[0], dual=OURS[0]),  # 4 times as fast
        trial("a", 0.0, 1, none=PLAIN[1], dual=OURS[1]),  # twice
        trial("b", 0.0, 0, none=PLAIN[1], dual=OURS[1]),
        trial("b", 1.0, 0, none=PLAIN[0], dual=OURS[0]),
    ]
    assert [(s.suite, s.temperature, s.prompts) for s in sections(log)] == [
        *(("a", 0.0, 2), ("b", 0.0, 1), ("b", 1.0, 1))
    ]
    greedy, sampled = means(log)
    assert (greedy.temperature, greedy.suites) == (0.0, ("a", "b"))
    dual = greedy.rows["dual"]
    assert dual.speedup is not None
    assert dual.speedup.value == pytest.approx((8 / 3 + 2) / 2)
    assert dual.speedup.low == pytest.approx(2.0)
    assert dual.speedup.high == pytest.approx(3.0)
    assert dual.acceptance_length.value == pytest.approx(2.0)
    assert dual.tokens_per_second == pytest.approx((8 / 3 + 2) / 2)
    assert greedy.against["dual"]["none"].speed == dual.speedup
    assert greedy.against["none"]["dual"].acceptance_length.value == pytest.approx(1 / 2)
    assert sampled.rows["dual"].speedup is not None
    assert sampled.rows["dual"].speedup.value == pytest.approx(4.0)


def test_ratios_are_of_the_same_prompts() -> None:
    """Two contenders that differ by prompt in the same way: their ratio is certain."""
    log = [
        trial("a", 0.0, n, none=PLAIN[0], x=(answer([n + 1], 1.0),), y=(answer([2 * n + 2], 1.0),))
        for n in range(5)
    ]
    [found] = means(log)
    wide = found.rows["x"].acceptance_length
    assert wide.low < wide.value < wide.high
    assert found.against["y"]["x"].acceptance_length == pytest.approx((2.0, 2.0, 2.0))
    assert found.against["y"]["x"].speed == pytest.approx((2.0, 2.0, 2.0))


def test_who_missed_a_suite_has_no_mean() -> None:
    log = [trial("a", 0.0, 0, none=PLAIN[0], x=OURS[0]), trial("b", 0.0, 0, none=PLAIN[0])]
    assert list(means(log)[0].rows) == ["none"]


def test_confidences_are_judged_by_temperature() -> None:
    sure = JudgedRow(False, 0, (0.9, 0.9), 2, 2)
    wrong = JudgedRow(True, 1, (0.8,), 1, 0)
    found = calibrations([trial("a", 0.0, 0, (sure, wrong)), trial("a", 1.0, 0, (sure,))])
    named = {(one.temperature, one.of): one for one in found}
    assert named.keys() >= {(0.0, "first pass"), (0.0, "second pass"), (1.0, "first pass")}
    assert (1.0, "second pass") not in named
    assert named[0.0, "first pass"].error == pytest.approx(0.1)
    assert named[0.0, "second pass"].error == pytest.approx(0.8)
    assert named[0.0, "second pass"].bins[0].count == 1


def test_a_trial_is_read_as_it_was_written() -> None:
    rows = (JudgedRow(True, 2, (0.25, 0.5), 2, 1),)
    stages = {"score": 0.25}
    told = trial("a", 0.5, 3, rows, none=(answer([2, 1], 0.125, stages=stages),))
    assert Trial.from_json(told.to_json()) == told


def test_results_of_another_schema_are_refused() -> None:
    values = Results(None, (), {}, (), ()).to_json()
    assert Results.from_json(values) == Results(None, (), {}, (), ())
    with pytest.raises(ValueError, match="have schema 0 and this d2sd reads 1"):
        Results.from_json({**values, "schema": 0})


def test_columns_of_steps_are_equally_long() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Steps((1,), (0,), (0,), (0,), ())
