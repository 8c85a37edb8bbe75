"""What the passes of a target and its drafters cost here, measured on the objects that decode."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from d2sd.costs import CostTable, Row, rising
from d2sd.decode import decode
from d2sd.drafters.proposer import NetworkProposer
from d2sd.interfaces import Context, Drafter
from d2sd.networks import Networks
from d2sd.sampling import Sampling
from d2sd.target.hf import HFTarget
from d2sd.tree import TokenTree, TreeBuilder

Hear = Callable[[int, int], object]
"""Is told how many passes are done, and of how many."""

SEED = 0
DEEPEST = 16
"""No node of a measured tree is further from the anchor: a drafter's block reaches about so far."""
APPENDED = 3
"""Feature rows that a pass reads first, as many as a step emits tokens, about."""
BEST = 16
"""Tokens read of every slot after a pass, as policies do."""
STEP_NODES, STEP_DEEPEST = 16, 4


@dataclass(frozen=True)
class Scope:
    """Which sizes are measured, and how often each; the median counts."""

    contexts: tuple[int, ...] = (64, 256, 1024, 4096)
    nodes: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
    rows: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    repeats: int = 9
    steps: int = 40
    """Steps that the time outside the passes is taken from."""

    def __post_init__(self) -> None:
        for name, counts in (
            ("contexts", self.contexts),
            ("nodes", self.nodes),
            ("rows", self.rows),
            ("repeats", (self.repeats,)),
            ("steps", (self.steps,)),
        ):
            if not counts or min(counts) < 1 or list(counts) != sorted(set(counts)):
                raise ValueError(
                    f"{name} to measure are {counts}; give whole numbers of 1 or more, ascending"
                )

    def within(self, limit: int) -> Scope:
        """The same for a target whose sequences hold `limit` tokens: longer ones are the longest.

        Raises ValueError when not even the shortest tree fits behind one token.
        """
        most = longest_context(limit)
        return replace(self, contexts=tuple(sorted({min(c, most) for c in self.contexts})))


QUICK = Scope((64, 512), (1, 8, 16, 32, 64), (1, 4), repeats=2, steps=6)
"""A few seconds on a small model; what a session measures when nothing is stored."""


def longest_context(limit: int) -> int:
    """Committed tokens that leave room for the deepest measured node in `limit` positions."""
    if limit <= DEEPEST + 1:
        raise ValueError(
            f"the target's context holds {limit} tokens; costs are measured from {DEEPEST + 2} on"
        )
    return limit - DEEPEST - 1


def check_room(target: HFTarget, scope: Scope) -> None:
    """Raises ValueError where the longest context leaves `target` no room for a tree."""
    longest = longest_context(target.context_limit)
    if scope.contexts[-1] > longest:
        raise ValueError(
            f"a context of {scope.contexts[-1]} tokens can't be measured: {target.name} holds "
            f"{target.context_limit}, of which a tree needs {DEEPEST + 1}; give at most {longest}"
        )


def measure_costs(
    target: HFTarget,
    networks: Networks,
    scope: Scope,
    hear: Hear = lambda done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> CostTable:
    """Time the passes in `scope` on random tokens, always the same ones, sizes turn by turn.

    Reads other tokens into the target's cache. Raises ValueError where a context does not fit
    the target.
    """
    check_room(target, scope)
    bench = _Bench(target, networks, scope, hear, clock)
    columns = [bench.column(length) for length in scope.contexts]
    scored, first, second = (tuple(zip(*kind, strict=True)) for kind in zip(*columns, strict=True))
    return CostTable(
        scope.nodes, scope.contexts, scored, scope.rows, first, second, bench.overhead()
    )


class _Bench:
    """The objects under the clock, and the random tokens they read."""

    def __init__(
        self,
        target: HFTarget,
        networks: Networks,
        scope: Scope,
        hear: Hear,
        clock: Callable[[], float],
    ) -> None:
        self.target, self.scope = target, scope
        proposers = networks.proposers(target)
        self.proposers = proposers.first, proposers.second
        self.rng = random.Random(SEED)
        self.vocab = min(target.vocab_size, len(target.embed))
        self.tokens = [self.rng.randrange(self.vocab) for _ in range(scope.contexts[-1] + 1)]
        drafters = len({id(p) for p in self.proposers if p is not None})
        sizes = len(scope.nodes) + drafters * len(scope.rows)
        self.total = len(scope.contexts) * (1 + scope.repeats) * sizes
        self.done, self.hear, self.clock = 0, hear, clock

    def column(self, length: int) -> tuple[Row, Row, Row]:
        """Seconds of all passes behind `length` tokens: target, first and second drafter."""
        context = self.target.prefill(self.tokens[: length + 1])
        target = self._medians(self.scope.nodes, lambda sizes: self._scores(context, sizes))
        drafts: dict[int, Row] = {}
        for proposer in self.proposers:
            if proposer is not None and id(proposer) not in drafts:
                drafts[id(proposer)] = self._drafts(proposer, context)
        first, second = (drafts.get(id(p), ()) for p in self.proposers)
        return target, first, second

    def _drafts(self, proposer: NetworkProposer, context: Context) -> Row:
        return self._medians(
            self.scope.rows, lambda sizes: self._proposals(proposer, context, sizes)
        )

    def _medians(
        self, sizes: Sequence[int], run: Callable[[Sequence[int]], Iterable[float]]
    ) -> Row:
        """The median seconds of each size, never falling; sizes take turns in changing order."""
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        for turn in range(1 + self.scope.repeats):
            order = [*sizes[turn % len(sizes) :], *sizes[: turn % len(sizes)]]
            for size, seconds in zip(order, run(order), strict=True):
                if turn:  # the first one warms every shape up
                    taken[size].append(seconds)
                self.done += 1
                self.hear(self.done, self.total)
        return rising([statistics.median(taken[size]) for size in sizes])

    def _scores(self, context: Context, sizes: Sequence[int]) -> Iterable[float]:
        for nodes in sizes:
            tree = random_tree(context.anchor, nodes, self.vocab, self.rng)
            yield self._seconds(partial(self.target.score, context, tree))

    def _proposals(
        self, proposer: NetworkProposer, context: Context, sizes: Sequence[int]
    ) -> Iterable[float]:
        """Every pass finds a few features that it has not read, as it does in a step."""
        start = context.committed - APPENDED * len(sizes)
        before = _cut(context, max(0, start))
        proposer.propose(before, [(before.anchor,)])  # forgets what lies behind
        for number, rows in enumerate(sizes, 1):
            before = _cut(context, max(0, start + APPENDED * number))
            visible = [self._visible(before, row, proposer.block_size) for row in range(rows)]
            yield self._seconds(partial(_propose, proposer, before, visible))

    def _visible(self, context: Context, row: int, block_size: int) -> tuple[int, ...]:
        kept = row % (block_size - 1)
        return (context.anchor, *(self.rng.randrange(self.vocab) for _ in range(kept)))

    def _seconds(self, work: Callable[[], object]) -> float:
        self._wait()
        start = self.clock()
        work()
        self._wait()
        return max(self.clock() - start, 1e-9)

    def _wait(self) -> None:
        if self.target.device.type == "cuda":
            torch.cuda.synchronize(self.target.device)

    def overhead(self) -> float:
        """Seconds of a step but for the target's pass, with a drafter that runs no network."""
        length = min(self.scope.contexts[0], self.target.context_limit // 2)
        room = (self.target.context_limit - length) // (STEP_DEEPEST + 1)
        scored: list[float] = []

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            start = self.clock()
            yield
            if name == "score":
                self._wait()
                scored.append(self.clock() - start)

        drafter = _RandomDrafter(self.vocab, self.rng)
        steps = decode(self.target, drafter, self.tokens[: length + 1], Sampling(), stage)
        next(steps)  # and the prefill
        count = max(1, min(self.scope.steps, room - 1))
        taken = [self._seconds(lambda: next(steps)) - scored[-1] for _ in range(count)]
        return max(0.0, statistics.median(taken))


@dataclass(frozen=True)
class _RandomDrafter(Drafter):
    """Builds a tree of random tokens: a step's work in Python without a network."""

    vocab: int
    rng: random.Random = field(repr=False)

    def draft(self, context: Context) -> TokenTree:
        return random_tree(context.anchor, 1 + STEP_NODES, self.vocab, self.rng, STEP_DEEPEST)


def random_tree(
    anchor: int, nodes: int, vocab: int, rng: random.Random, deepest: int = DEEPEST
) -> TokenTree:
    """A tree of `nodes` nodes, anchor included, none more than `deepest` away from it."""
    builder, depths = TreeBuilder(anchor), [0]
    while len(builder) < nodes:
        parent = rng.randrange(len(builder))
        if depths[parent] < deepest:
            node = builder.add(parent, rng.randrange(vocab), "random")
            if node == len(depths):
                depths.append(depths[parent] + 1)
    return builder.tree()


def _propose(
    proposer: NetworkProposer, context: Context, visible: Sequence[tuple[int, ...]]
) -> None:
    """A pass as policies use it: they ask for the best tokens of every slot."""
    proposer.propose(context, visible).top(BEST)


def _cut(context: Context, committed: int) -> Context:
    """The context as it was when `committed` of its tokens were."""
    return Context(context.tokens[: committed + 1], context.features[:committed])
