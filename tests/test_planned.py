"""The policy `planned` under known laws and a clock of our own: never behind, and why."""

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest
import torch

from d2sd.decode import decode
from d2sd.drafters.none import NoDrafter
from d2sd.drafters.planned import Bounds, PlannedDrafter
from d2sd.drafters.policies import build_drafter, parse_policy
from d2sd.drafters.proposer import Proposer
from d2sd.sampling import Sampling
from fakes import (
    MarkovProposer,
    MarkovTarget,
    ScriptedProposer,
    context_of,
    random_table,
    spread,
    straight_costs,
)

VOCAB, BLOCK, PROMPT = 32, 8, 4
TABLE = random_table(VOCAB, scale=3.0, seed=2)
KNOWING = MarkovProposer(TABLE, BLOCK)
ERRING = MarkovProposer(random_table(VOCAB, scale=5.0, seed=9), BLOCK)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Ticking(Proposer):
    """A proposer whose passes take the table's time."""

    def __init__(self, inner, clock, seconds):
        self.inner, self.clock, self.seconds = inner, clock, seconds
        self.block_size = inner.block_size
        self.asked = []

    @property
    def passes(self):
        return len(self.asked)

    def propose(self, context, visible, block_size=None):
        self.clock.now += self.seconds(context.committed, len(visible))
        self.asked.append((len(visible), block_size))
        return self.inner.propose(context, visible, block_size)


@dataclass
class Machine:
    """A target and its passes that take the times of `costs`, in simulated seconds."""

    costs: object = field(default_factory=straight_costs)
    clock: Clock = field(default_factory=Clock)
    slowness: float = 1.0
    passes: list = field(default_factory=list)

    def proposers(self, inner=KNOWING):
        self.passes = [
            Ticking(inner, self.clock, lambda context, rows: self.costs.first_seconds(context)),
            Ticking(inner, self.clock, self.costs.second_seconds),
        ]
        return self.passes

    def planned(self, inner=KNOWING, **bounds):
        proposers = self.proposers(inner) if inner else []
        return PlannedDrafter(proposers, self.costs, Bounds(**bounds), self.clock)

    def trees(self, drafter, text):
        """The drafts along `text`, as if it were the target's own."""
        reached = PROMPT
        while reached < len(text):
            tree = drafter.draft(context_of(text[:reached]))
            node = 0
            while reached < len(text):
                node = tree.children.get((node, text[reached]))
                if node is None:
                    break
                reached += 1
            reached += 1
            self.clock.now += self.slowness * self.costs.target_seconds(len(tree), reached)
            yield tree

    def rate(self, drafter, text):
        """Tokens a second."""
        before = self.clock.now
        for _ in self.trees(drafter, text):
            pass
        return (len(text) - PROMPT) / (self.clock.now - before)


def drawn(length, seed=0, table=TABLE):
    """A text that the table says at temperature 1."""
    rng, text, rows = random.Random(seed), [1], table.tolist()
    while len(text) < length:
        text += rng.choices(range(VOCAB), rows[text[-1]])
    return tuple(text)


def repetitive(length):
    """A phrase of 40 tokens, said twice again and again between random words."""
    rng = random.Random(1)
    phrase, text = [rng.randrange(VOCAB) for _ in range(40)], []
    while len(text) < length:
        text += [rng.randrange(VOCAB) for _ in range(10)] + 2 * phrase
    return tuple(text[:length])


ALL = ("none", "ngram", "best-first:budget=8", "merged:budget=16")
UNFORESEEN = random_table(VOCAB, scale=0.1)  # every token is about as likely as any other
FREE = straight_costs(node=0.02, first=0, row=0, second=0)
DEAR = straight_costs(node=0.05, first=0.7, row=0.1, second=0.7)
SECOND_PAYS = straight_costs(node=0.02, first=0.1, row=0.01, second=0.02)
SECOND_DEAR = straight_costs(node=0.05, first=0.1, row=0.5, second=1.5)
MIDDLING = straight_costs(node=0.03, first=0.3, row=0.05, second=0.3)


@pytest.mark.parametrize(
    ("costs", "inner", "text", "best", "others"),
    [
        (FREE, KNOWING, drawn(700), "merged:budget=16", ALL),
        (DEAR, ERRING, drawn(2000, table=UNFORESEEN), "none", ["ngram"]),
        (SECOND_PAYS, KNOWING, drawn(700), "merged:budget=16", ALL[2:]),
        (SECOND_DEAR, KNOWING, drawn(700), "best-first:budget=8", ALL[2:]),
        (MIDDLING, ERRING, repetitive(700), "ngram", ALL[:1]),
    ],
    ids=["drafting is free", "nothing pays", "second pays", "second is dear", "copies pay"],
)
def test_never_behind_the_best_fixed_policy(costs, inner, text, best, others):
    rates = {}
    for name in {best, *others}:
        machine = Machine(costs)
        drafter = build_drafter(parse_policy(name), *machine.proposers(inner))
        rates[name] = machine.rate(drafter, text)
    assert max(rates, key=rates.get) == best  # the regime is what it is meant to be
    machine = Machine(costs)
    assert machine.rate(machine.planned(inner), text) >= 0.98 * rates[best]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("inner", [None, KNOWING, ERRING], ids=["no pass", "knowing", "erring"])
def test_the_tokens_are_those_of_plain_decoding(inner, temperature):
    def output(drafter):
        sampling = Sampling(temperature, rng=torch.Generator().manual_seed(3))
        steps = decode(MarkovTarget(TABLE), drafter, [4], sampling)
        emitted = itertools.chain.from_iterable(step.emitted for step in steps)
        return list(itertools.islice(emitted, 80))

    drafter = Machine(MIDDLING).planned(inner)
    assert output(drafter) == output(NoDrafter())
    assert output(drafter) == output(NoDrafter())  # a new sequence, with what was learned


def test_the_same_times_give_the_same_trees():
    text = drawn(150)
    first, second = (list(m.trees(m.planned(), text)) for m in (Machine(), Machine()))
    assert first == second


def test_without_a_clock_the_table_is_believed():
    text = drawn(150)
    machine = Machine()
    unclocked = PlannedDrafter(machine.proposers(), machine.costs, clock=None)
    expected = Machine()
    assert list(machine.trees(unclocked, text)) == list(expected.trees(expected.planned(), text))


def test_a_bad_draft_may_end_in_no_drafted_node():
    flat = torch.full((BLOCK - 1, VOCAB), 1 / VOCAB)
    proposer = ScriptedProposer(BLOCK, {(): flat})
    drafter = PlannedDrafter([proposer], straight_costs(node=0.2, first=0.01), clock=None)
    assert len(drafter.draft(context_of([3]))) == 1
    assert len(proposer.passes) == 1


def test_a_sure_draft_is_taken_whole():
    sure = torch.stack([spread({slot: 0.99}, VOCAB) for slot in range(BLOCK - 1)])
    drafter = PlannedDrafter(
        [ScriptedProposer(BLOCK, {(): sure})], straight_costs(node=0.05), clock=None
    )
    tree = drafter.draft(context_of([3]))
    assert tree.tokens[1:] == tuple(range(BLOCK - 1))
    assert set(tree.sources[1:]) == {"first"}


@pytest.mark.parametrize("bounds", [{"budget": 5}, {"branches": 1}, {"block_size": 3}])
def test_bounds_hold(bounds):
    machine = Machine(straight_costs(node=0.001, first=0, row=0, second=0))
    drafter = machine.planned(**bounds)
    trees = list(machine.trees(drafter, drawn(120)))
    rows = machine.passes[1].asked
    assert max(len(tree) - 1 for tree in trees) <= bounds.get("budget", 64)
    assert max(count for count, _ in rows) <= bounds.get("branches", 4)
    assert {size for _, size in rows} == {bounds.get("block_size", BLOCK)}


def test_copies_join_a_pass_in_one_tree():
    machine = Machine(straight_costs(node=0.002, first=0.01, second=5.0))
    sources = [set(t.sources) for t in machine.trees(machine.planned(), repetitive(300))]
    assert any({"first", "ngram"} <= found for found in sources)


def test_tries_stay_within_their_share():
    text = drawn(1500, table=UNFORESEEN)
    machine = Machine(DEAR)
    drafter = machine.planned(ERRING)
    settling = sum(len(tree) for tree in machine.trees(drafter, text[:300]))
    assert settling > 0
    spent = [ticking.passes for ticking in machine.passes]
    before = machine.clock.now
    machine.rate(drafter, text[300:])
    first, second = (t.passes - b for t, b in zip(machine.passes, spent, strict=True))
    assert 0 < 0.7 * first + 0.7 * second < 0.02 * (machine.clock.now - before)


def test_a_drafter_that_gets_worse_is_left_and_taken_up_again():
    costs = straight_costs(node=0.05, first=0.3, row=2.0, second=5.0)
    machine = Machine(costs)
    drafter = machine.planned()
    foreign = drawn(600, seed=3, table=UNFORESEEN)
    shares = []
    for text in (drawn(400), foreign, drawn(1000, seed=4)):
        before = machine.passes[0].passes
        steps = len(list(machine.trees(drafter, text)))
        shares.append((machine.passes[0].passes - before) / steps)
    assert shares[0] > 0.9
    assert shares[1] < 0.4
    assert shares[2] > 0.6


@pytest.mark.parametrize("slowness", [1.0, 2.0])
def test_the_clock_corrects_the_targets_times(slowness):
    machine = Machine(straight_costs(), slowness=slowness)
    drafter = machine.planned()
    machine.rate(drafter, drawn(400))
    assert drafter._estimates.slow(0) == pytest.approx(slowness, rel=0.05)
    assert drafter._estimates.slow(1) == pytest.approx(1.0, rel=0.05)


def test_a_pause_of_the_reader_is_no_slow_target():
    machine = Machine(straight_costs())
    drafter = machine.planned()
    for number, _ in enumerate(machine.trees(drafter, drawn(400))):
        machine.clock.now += 1000.0 * (number % 20 == 7)
    assert drafter._estimates.slow(0) < 1.3


def test_another_sequence_teaches_nothing_wrong():
    machine = Machine(straight_costs())
    drafter = machine.planned()
    machine.rate(drafter, drawn(200))
    before = drafter._estimates.rate.value, drafter._estimates.kept[True].value
    machine.clock.now += 50
    drafter.draft(context_of(drawn(200, seed=8)))
    after = drafter._estimates.rate.value, drafter._estimates.kept[True].value
    assert after == pytest.approx(before)


@pytest.mark.parametrize(("count", "name"), [(1, "first"), (2, "second")])
def test_a_table_without_the_drafters_times_is_refused(count, name):
    costs = straight_costs()
    lacking = replace(costs, **{name: ()})
    with pytest.raises(ValueError, match=f"no times of the {name} drafter; run d2sd tune again"):
        PlannedDrafter([KNOWING, KNOWING][:count], lacking)
