"""How much a batch drafts: prices and promises learned, and what drafting really lost."""

import random
from dataclasses import dataclass

import pytest

from d2sd.drafters.best_first import RankedRow
from d2sd.drafters.hits import Average
from d2sd.engines.batches.arrivals import Arrivals
from d2sd.engines.batches.clock import StepClock
from d2sd.engines.batches.pace import Pace
from d2sd.engines.batches.placement import PlainPass, Scheduled, place
from d2sd.engines.batches.plan import BatchDrafter, chain_paths
from d2sd.engines.batches.prices import Line
from d2sd.tree import TokenTree


def test_a_line_finds_what_a_row_costs():
    line = Line()
    for rows in (1, 8, 24, 3, 1, 8, 24, 8, 3):
        line.add(rows, 0.1 + 0.01 * rows)
    assert line.at(16) == pytest.approx(0.26, rel=0.05)
    assert line.at(1) == pytest.approx(0.11, rel=0.1)


@dataclass
class Engine:
    """An engine whose passes take `start + per_row` × rows seconds, and a pace that learns them."""

    per_row: float
    start: float = 0.03
    drafting: float = 0.01
    chances: tuple[float, ...] = (0.6, 0.4, 0.3, 0.2, 0.1, 0.05)
    ready: float = 0.0
    """What the first pass of a size takes longer."""
    comes_true: float = 1.0
    """Of the chances that drafters give, how much is so."""

    def __post_init__(self):
        self.sizes = set()
        self.pace, self.rng, self.seconds, self.drafts = Pace(), random.Random(1), 0.0, 0
        self.asked = []

    def step(self, requests):
        """One step of so many requests; the tokens it emits."""
        pace, nodes, drafting, predicted = self.pace, 0, 0.0, 0.0
        asking = pace.first_count(requests)
        self.asked.append(asking)
        ranked = sorted(self.chances * asking, reverse=True)
        if asking:
            drafting = self.drafting + 1e-4 * asking
            choice = pace.budget(ranked, requests, asking)
            pace.drafted([self.chances] * asking, [], drafting)
            nodes, self.drafts = choice.count, self.drafts + 1
        ranked = ranked[:nodes]
        accepted = sum(self.rng.random() < self.comes_true * chance for chance in ranked)
        predicted = sum(ranked)
        target = self.start + self.per_row * (requests + nodes)
        target += self.ready * (requests + nodes not in self.sizes)
        self.sizes.add(requests + nodes)
        pace.scored(requests + nodes, 0, target)
        pace.stepped(requests, target, target + drafting + 0.001)
        pace.compared(requests, requests + nodes, 0, accepted)
        if predicted:
            pace.came_true(accepted, predicted)
        self.seconds += target + drafting + 0.001
        return requests + accepted

    def speed(self, requests, steps=600):
        """Tokens a second, over that of plain decoding."""
        start = self.seconds
        emitted = sum(self.step(requests) for _ in range(steps))
        plain = requests / (self.start + self.per_row * requests + 0.001)
        return emitted / (self.seconds - start) / plain


def nothing_is_tried(pace, requests):
    """For the next steps: a loss has to be paid for first."""
    known = pace.experience(requests)
    known.behind = 1.0
    while known.tries():
        pass


def blind(pace, requests):
    """Neither what is accepted nor what steps take corrects what is foreseen."""
    pace.kept = Average(1e9, 1e9, memory=10**9)
    pace.experience(requests).brought = Average(1e9, 1e9, memory=10**9)


@pytest.mark.parametrize("requests", [1, 8, 32])
def test_a_batch_never_falls_behind_plain_decoding_for_long(requests):
    assert Engine(per_row=0.003).speed(requests) > 0.97
    assert Engine(per_row=0.05, drafting=0.5).speed(requests) > 0.9  # eight dear tries in it
    assert Engine(per_row=1e-5).speed(requests) > 1.6


def test_where_drafting_does_not_pay_it_is_tried_for_one_request():
    engine = Engine(per_row=0.05, drafting=0.5)
    engine.speed(32)
    assert engine.asked[:9] == [0, 0, 4, 4, 4, 4, 4, 4, 32]  # prices are learned from a few
    assert set(engine.asked[9:]) == {0, 1, 32}
    assert engine.asked.count(32) == 3  # 600 steps, a try of one step in 256


def test_many_requests_learn_from_a_few_before_drafting_for_all():
    engine = Engine(per_row=1e-5)
    engine.speed(32, steps=40)
    drafted = [asking for asking in engine.asked if asking]
    assert drafted[:4] == [4] * 4
    assert set(drafted[8:]) == {32}
    assert engine.speed(32) > 1.6


def test_a_refusal_holds_for_some_steps_and_not_for_fewer_requests():
    engine = Engine(per_row=0.003)
    assert engine.speed(64) > 0.97
    pace, asked = engine.pace, []
    nothing_is_tried(pace, 64)
    nothing_is_tried(pace, 1)
    pace.experience(1).stepped(1.0)
    rates = pace.rates
    pace.rates = lambda requests: asked.append(requests) or rates(requests)
    for _ in range(24):
        pace.first_count(64)
    assert len(asked) <= 4  # 24 questions, 8 at a time
    assert pace.first_count(1) == 1
    assert asked[-1] == 1


def test_what_only_drafting_costs_is_not_counted_against_plain_steps():
    pace = Pace()
    for step in range(40):
        drafting = 0.0
        if pace.first_count(8) and step % 2:
            drafting = 0.002
            pace.drafted([[0.5]] * 8, [[0.5]] * 8, drafting)
        pace.scored(8, 0, 0.02)
        pace.stepped(8, 0.02, 0.02 + drafting + (0.005 if drafting else 0.001))
    plain, _ = pace.rates(8)
    assert plain == pytest.approx(8 / 0.021, rel=0.01)


def test_drafting_is_never_taken_to_spare_what_every_step_costs():
    """A server's steps cost more with many requests; those with drafts were few, and of one."""
    pace = Pace()
    for requests, drafting in ((1, 0.01), (16, 0.0)):
        for _ in range(40):
            pace.first_count(requests)
            if drafting:
                pace.drafted([[0.5]] * requests, [[0.5]] * requests, drafting)
            pace.scored(requests, 0, 0.02)
            pace.stepped(requests, 0.02, 0.02 + drafting + 0.0005 * requests)
    plain, drafted = pace.rates(16)
    assert plain == pytest.approx(16 / 0.028, rel=0.05)
    assert drafted < 16 * 1.5 / 0.037


def test_drafting_is_begun_where_it_clearly_pays_and_kept_up_as_long_as_it_does():
    pace, promised = Pace(), [1.08]
    for _ in range(20):
        pace.first_count(4)
        pace.drafted([[0.5]] * 4, [[0.5]] * 4, 0.001)
        pace.scored(4, 0, 0.02)
    pace.rates = lambda requests: (1.0, promised[0])
    found = []
    nothing_is_tried(pace, 4)
    for promised[0] in (0.9, 1.05, 1.15, 1.05, 0.98, 1.05):
        pace.asked += 8 - pace.asked % 8  # a refusal holds for some steps
        found.append(pace.first_count(4) == 4)
    assert found == [False, False, True, True, False, False]


@pytest.mark.parametrize("requests", [1, 8, 32])
def test_drafts_that_are_not_what_they_promise_lose_little_of_the_time(requests):
    engine = Engine(per_row=1e-5, comes_true=0.0, drafting=0.02)
    blind(engine.pace, requests)
    engine.speed(requests)
    plain, drafted = engine.pace.rates(requests)
    assert drafted > 1.2 * plain
    assert engine.speed(requests, steps=4000) > 0.985


def test_one_size_of_batch_gives_drafting_up_and_another_goes_on():
    engine = Engine(per_row=1e-4, drafting=0.01)
    blind(engine.pace, 32)
    assert engine.speed(2) > 1.1
    engine.comes_true = 0.0
    engine.speed(32, steps=100)
    assert engine.pace.experience(32).given_up
    engine.comes_true = 1.0
    assert not engine.pace.experience(2).given_up
    assert engine.speed(2) > 1.1
    assert engine.pace.first_count(32) <= 1


def test_a_size_of_batch_begins_where_the_highest_bit_does():
    pace = Pace()
    assert [pace.experience(count).requests for count in (1, 3, 8, 15, 16, 32)] == [
        1, 2, 8, 8, 16, 32
    ]  # fmt: skip
    assert pace.experience(15) is pace.experience(8)


def test_what_drafts_really_bring_corrects_what_is_foreseen():
    """Between batches of this size, drafts' passes read prompts and take longer than foreseen."""
    engine = Engine(per_row=1e-4)
    engine.speed(8, steps=300)
    pace = engine.pace
    plain, drafted = pace.rates(8)
    assert drafted > 1.3 * plain
    for _ in range(400):
        asking = pace.first_count(8)
        if asking:
            pace.drafted([engine.chances] * asking, [], 0.0108)
        pace.scored(48 if asking else 8, 0, 0.18 if asking else 0.1308, prompts=50)
        pace.compared(8, 48, 0, 12)
    assert pace.prompts.value == pytest.approx(0.002, rel=0.01)
    plain, drafted = pace.rates(8)
    assert drafted < 1.05 * plain
    assert pace.rates(2)[1] > 1.3 * pace.rates(2)[0]


@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_drafts_whose_passes_read_prompts_are_compared_without_the_prompts_price(loss):
    engine = Engine(per_row=1e-4)
    engine.speed(4)
    pace = engine.pace
    pace.experience(4).behind = 0.0
    for _ in range(200):
        asking = pace.first_count(4)
        if asking:
            pace.drafted([engine.chances] * asking, [], 0.0104)
        rows = 4 + 12 * (asking > 0)
        pace.scored(rows, 0, 0.03 + 1e-4 * rows + 0.3 + loss * (asking > 0), prompts=100)
        pace.compared(4, rows, 0, 6)
    plain, drafted = pace.rates(4)
    assert (drafted < plain) == (loss > 0.0)
    assert (drafted > 1.3 * plain) == (loss == 0.0)


def test_the_clock_tells_what_prompts_took_from_what_decoding_takes():
    """Two requests decode in 0.02 s, 0.01 s between passes; 50 rows of a prompt take 0.1 s."""
    times, pace = [0.0], Pace()
    clock = StepClock(lambda: times[0])
    drafter = BatchDrafter.__new__(BatchDrafter)  # its networks are not asked here
    drafter.pace, drafter.predicted = pace, {}
    decoding = PlainPass(["a", "b"], [5, 7])
    reading = place([Scheduled("a", 0, 1, 5, 9, ()), Scheduled("b", 1, 51, 0, 3, ())], {})
    reading.paths = [(0,), (0,)]
    for step in range(40):
        placed = reading if step % 4 == 3 else decoding
        pace.first_count(2)
        times[0] += 0.01
        clock.started()
        times[0] += 0.02 + 0.1 * (placed is reading)
        clock.scored(placed, drafter)
    assert pace.prompts.value == pytest.approx(0.002, rel=0.05)
    assert 2 / pace.rates(2)[0] == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize("requests", [1, 8])
def test_nothing_is_drafted_where_the_next_pass_is_likely_to_read_prompts(requests):
    engine = Engine(per_row=1e-5)
    assert engine.speed(requests) > 1.6
    engine.pace.experience(requests).stepped(1.0)  # no plain one is due
    asked = [engine.pace.first_count(requests, step % 2 == 0) for step in range(20)]
    assert asked == [0, requests] * 10
    beginning = Pace()
    for _ in range(2):
        beginning.scored(requests, 0, 0.02)
        beginning.stepped(requests, 0.02, 0.021)
    assert [beginning.first_count(requests, True) for _ in range(20)] == [0] * 20
    assert beginning.first_count(requests) == min(requests, 4)  # tried in the steps between


def test_a_batch_of_which_someone_left_or_reads_a_prompt_is_likely_to_read_prompts_next():
    arrivals = Arrivals()
    steps = [[[5]], [[5], [7]], [[5, 6], [7]], [[5]], [[6]], [[7], []], [[8], [1, 2]], [[9]], [[2]]]
    assert [arrivals.likely(ends) for ends in steps] == [
        False, False, False, True, False, True, False, True, False,
    ]  # fmt: skip


def test_where_several_requests_came_at_once_more_are_likely_to_come():
    arrivals = Arrivals()
    sizes = [1, 14, 32, 32, 33, 33, 35, 35]
    assert [arrivals.likely([[5]] * size) for size in sizes] == [
        False, True, True, False, False, False, True, False,
    ]  # fmt: skip


def test_who_decided_to_draft_answers_for_what_it_cost_with_those_who_came_since():
    """Eight were drafted for, and 32 were in the pass: a loss of theirs, by no fault of drafts."""
    engine = Engine(per_row=1e-4)
    engine.speed(32)
    engine.speed(8)
    pace = engine.pace
    few, many = pace.experience(8), pace.experience(32)
    few.behind = many.behind = 0.0
    while not pace.first_count(8):
        few.stepped(1.0)
    before = (few.brought.value, many.brought.value)
    pace.drafted([engine.chances] * 8, [], 0.0108)
    pace.scored(56, 0, 0.0356)
    pace.compared(32, 56, 0, 1)
    assert (many.behind, many.brought.value, few.brought.value) == (0.0, before[1], before[0])
    assert few.behind > 0.3


def test_the_first_pass_of_a_size_counts_but_little_of_its_slowness():
    behind = []
    for once in (0.0, 1.0):
        engine = Engine(per_row=1e-4)
        engine.speed(4)
        pace = engine.pace
        pace.experience(4).behind = 0.0
        while not pace.first_count(4):
            pace.scored(4, 0, 0.0304)
        pace.drafted([engine.chances] * 4, [], 0.0104)
        pace.scored(37, 0, 0.0337 + once)
        pace.compared(4, 37, 0, 0)
        behind.append(pace.experience(4).behind)
    assert 0.3 < behind[1] - behind[0] < 0.7


def test_drafts_are_held_against_plain_steps_of_their_own_size():
    """No straight line goes through these prices; what lies beside it is known for every size."""
    pace, price = Pace(), {1: 0.02, 8: 0.04, 32: 0.045}
    for _ in range(100):
        for requests, seconds in price.items():
            pace.scored(requests, 0, seconds)
            pace.stepped(requests, seconds, seconds + 0.001)
    assert pace.plain.at(8) < 0.9 * 0.04
    assert 8 / pace.rates(8)[0] == pytest.approx(0.041, rel=0.02)


@dataclass
class SteppedEngine(Engine):
    """Passes of nine rows and more take half again as long, and no straight line says so."""

    def step(self, requests):
        self.start = 0.03 if requests < 9 else 0.045
        return super().step(requests)


def test_plain_steps_of_a_size_are_seen_before_drafting_for_it_is_judged():
    engine = SteppedEngine(per_row=0.0, drafting=0.02, chances=(0.3, 0.1))
    assert engine.speed(16, steps=300) > 0.98
    pace = engine.pace
    assert pace.plain.at(8) > 0.044  # what it took for sixteen
    assert engine.speed(8, steps=200) > 0.97
    assert pace.experience(8).behind >= 0.0  # against what it takes for eight: no gain
    engine.chances = (0.9, 0.8, 0.7)
    assert engine.speed(8, steps=3000) > 1.5


def test_reading_what_nobody_drafted_from_is_lost_time_but_says_nothing_of_later_steps():
    """In 0.25 s beside the networks, where such steps take 0.01 s; three times the pass counts."""
    found = []
    for reading in (0.0, 0.24):
        engine = Engine(per_row=1e-4)
        engine.speed(4)
        pace = engine.pace
        pace.experience(4).behind = 0.0
        while not pace.first_count(4):
            engine.pace.experience(4).stepped(1.0)
        pace.drafted([engine.chances] * 4, [], 0.0104)
        pace.scored(28, 0, 0.0328)
        pace.stepped(4, 0.0328, 0.0328 + 0.0104 + 0.01 + reading)
        pace.compared(4, 28, 0, 6)
        found.append((pace.experience(4).behind, pace.experience(4).brought.value))
    (behind, brought), (behind_more, brought_more) = found
    assert 2.5 < behind_more - behind < 3.5
    assert brought_more == pytest.approx(brought, rel=0.03)


def test_passes_that_are_slow_once_do_not_count():
    assert Engine(per_row=0.001, ready=0.3).speed(1, steps=2000) > 1.4
    assert Engine(per_row=0.001, ready=0.3).speed(4, steps=2000) > 1.3


def test_what_pays_for_one_request_is_left_for_many_and_taken_up_again_at_once():
    engine = Engine(per_row=0.003)
    assert engine.speed(1) > 1.3
    before = engine.drafts
    assert engine.speed(64) > 0.98
    assert engine.drafts - before < 30
    assert engine.speed(1, steps=60) > 1.3


def test_drafts_that_stopped_coming_true_are_tried_again_in_half_a_percent_of_the_time():
    engine = Engine(per_row=0.003, chances=(0.01,))
    engine.speed(1)
    before = engine.drafts
    engine.speed(1, steps=2000)
    assert 0 < engine.drafts - before < 40
    engine.chances = (0.9, 0.8, 0.7)
    assert engine.speed(1, steps=4000) > 1.2


def test_a_chain_is_taken_where_forks_cost_more_than_they_bring():
    pace = Pace()
    for rows in (2, 16, 2, 16):
        pace.scored(rows, 0, 0.02 + 0.0005 * rows)
    for _ in range(50):
        pace.scored(16, 2, 0.05 + 0.0005 * 16)
    assert pace.forks.value == pytest.approx(0.015, rel=0.1)
    tree, chain = [0.6, 0.5, 0.4, 0.3, 0.2] * 2, [0.6, 0.4, 0.2] * 2
    choices = [
        pace.budget(sorted(one, reverse=True), 2, 2 * (one is tree)) for one in (tree, chain)
    ]
    assert choices[1].value > choices[0].value
    assert choices[1].count == 6


def test_a_row_s_chain_is_its_best_tokens_one_after_the_other():
    row = RankedRow((), [[4, 5], [6, 7]], [[0.5, 0.3], [0.4, 0.2]], "first")
    paths = chain_paths(row)
    assert paths.chances == (0.5, 0.2)
    assert paths.tree(9) == TokenTree((9, 4, 6), (-1, 0, 1), ("anchor", "first", "first"))


def test_passes_grow_twofold_at_most_so_that_no_price_is_a_mere_guess():
    engine = Engine(per_row=1e-6, chances=(0.5,) * 24)
    widest = []
    for _ in range(8):
        engine.step(4)
        widest.append(engine.pace.widest)
    assert widest == [4, 4, 16, 32, 64, 100, 100, 100]  # the second one measures plain steps


def test_a_dear_row_shrinks_the_trees_of_all_to_nothing_and_a_cheap_one_lets_them_grow():
    counts = []
    for per_row in (1e-6, 1e-3, 1e-1):
        engine = Engine(per_row)
        engine.speed(8)
        engine.pace.kept = Average(1.0, 1.0)
        chances = sorted([0.7, 0.6, 0.3, 0.1, 0.02] * 8, reverse=True)
        counts.append(engine.pace.budget(chances, 8, 8).count)
    assert counts[0] > counts[1] > counts[2]
    assert (counts[0], counts[2]) == (40, 0)


def test_the_first_steps_are_plain_so_that_their_price_is_known():
    assert Pace().first_count(3) == 0
