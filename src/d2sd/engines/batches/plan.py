"""First drafter, plan, second drafter, for all requests of a batch in two batched passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from operator import mul
from typing import TypeVar

from d2sd.drafters.best_first import FEW, RankedPaths, RankedRow, fetched_rows
from d2sd.drafters.merged import Gain, merged_paths, second_source, weighed_anchors
from d2sd.drafters.planner import Choice
from d2sd.drafters.policies import Policy
from d2sd.engines.batches.pace import Pace
from d2sd.engines.batches.passes import BatchedNetwork, NewRows, Wanted
from d2sd.tree import Branch, TokenTree

Decided = TypeVar("Decided")
Rows = dict[str, list[RankedRow]]
Paths = dict[str, RankedPaths]


@dataclass(frozen=True)
class Asking:
    """A request that a tree is drafted for, at most `deepest` deep.

    `tokens` counts every token so far, the anchor included. With `chain` the tree has no forks.
    """

    request: str
    anchor: int
    tokens: int
    deepest: int
    temperature: float = 0.0
    chain: bool = False


@dataclass(frozen=True)
class Redrafted:
    """A second pass: its rows, the step's worth before it, its anchors' mass, its seconds."""

    rows: int
    before: float
    mass: float
    seconds: float


class BatchDrafter:
    """Trees for a batch by the policies block, best-first, merged and planned.

    `budget` is the most nodes of one request's tree. The policy planned lets all trees share what
    pays. Whatever decides which passes run, and the trees themselves, goes through `agree`: where
    several ranks draft side by side it gives all of them the first one's answer.
    """

    def __init__(
        self,
        policy: Policy,
        budget: int,
        networks: Sequence[BatchedNetwork],
        agree: Callable[[object], object] = lambda decided: decided,
    ) -> None:
        self._budget, self._agree = budget, agree
        self._first = networks[0]
        self._second = networks[-1] if policy.name in ("merged", "planned") else None
        self._networks = tuple(dict.fromkeys(networks))
        self._chains = policy.name == "block"
        self._branches = int(policy.options.get("branches", 4))
        self._anchors = str(policy.options.get("anchors", "mixed"))
        self._block_size = int(policy.options.get("block_size", self._first.block_size))
        self.pace = Pace() if policy.name == "planned" else None
        self.predicted: dict[str, float] = {}
        """Tokens expected to be accepted of each request's last tree."""
        self._promised: tuple[list[list[float]], list[list[float]]] = ([], [])
        self._requests = 0
        """That could be drafted for in this step."""

    def read(self, new: Sequence[NewRows]) -> None:
        """What was committed since the last call."""
        for network in self._networks:
            network.read(new)

    def forget(self, request: str) -> None:
        """The request has ended."""
        self.predicted.pop(request, None)
        for network in self._networks:
            network.forget(request)

    def wanted(self, requests: int, prompts_next: bool = False) -> int:
        """For how many of so many requests to draft in this step, as far as that pays.

        `prompts_next`: the next pass is likely to read some. 0 spares the engine all that `read`
        and `draft` ask for.
        """
        self.predicted.clear()
        self._requests = requests
        return self._decided(lambda: self._first_count(prompts_next)) if requests else 0

    def draft(self, asking: Sequence[Asking], most: int) -> dict[str, TokenTree]:
        """Trees for requests whose tokens were all read; `most` is what was `wanted`."""
        able = [
            one
            for one in asking
            if one.deepest > 0 and self._first.ready(one.request, one.tokens - 1)
        ][:most]
        if not able:
            return {}
        started = time.perf_counter()
        wanted = [
            Wanted(one.request, [(one.anchor,)], one.tokens - 1, one.temperature) for one in able
        ]
        rows = self._pass(self._first, wanted, {one.request: [()] for one in able})
        second = self._redraft(wanted, able, rows) if self._second is not None else None
        choice, trees = self._decided(lambda: self._trees(able, rows))
        if self.pace:
            if second is not None:
                self.pace.redrafted(second.rows, second.seconds)
                self.pace.lifted(choice.value - second.before, second.mass)
            self.pace.drafted(*self._promised, time.perf_counter() - started)
        return trees

    def _first_count(self, prompts_next: bool) -> int:
        return self.pace.first_count(self._requests, prompts_next) if self.pace else self._requests

    def _decided(self, decide: Callable[[], Decided]) -> Decided:
        return self._agree(decide())  # type: ignore[return-value]

    def _pass(
        self,
        network: BatchedNetwork,
        wanted: Sequence[Wanted],
        kept: Mapping[str, Sequence[tuple[int, ...]]],
        first: Rows | None = None,
    ) -> Rows:
        """One pass, its rows on the host."""
        proposals = network.propose(wanted, self._block_size)
        few = max(FEW, self._branches + 1)
        found = {}
        for one in wanted:
            tokens = kept[one.request]
            sources = ["first"]
            if first is not None:
                sources = [second_source(first[one.request][0], anchors) for anchors in tokens]
            found[one.request] = fetched_rows(proposals[one.request], tokens, sources, few)
        return found

    def _redraft(
        self, wanted: Sequence[Wanted], able: Sequence[Asking], rows: Rows
    ) -> Redrafted | None:
        """Add a second pass's rows."""
        assert self._second is not None
        gains = self._decided(lambda: self._gains(able, rows))
        kept: dict[str, list[tuple[int, ...]]] = {}
        for request, (_, tokens) in gains:
            kept.setdefault(request, []).append(tokens)
        again = [
            replace(one, visible=[(*one.visible[0], *tokens) for tokens in kept[one.request]])
            for one in wanted
            if one.request in kept
        ]
        if not again:
            return None
        before = self._choice(able, rows)[0].value if self.pace else 0.0
        started = time.perf_counter()
        found = self._pass(self._second, again, kept, rows)
        for request, more in found.items():
            rows[request] += more
        mass = sum(mass for _, (mass, _) in gains)
        return Redrafted(len(gains), before, mass, time.perf_counter() - started)

    def _gains(self, able: Sequence[Asking], rows: Rows) -> list[tuple[str, Gain]]:
        """The anchors of second rows, those of all requests together, best first."""
        found = [
            (one.request, gain)
            for one in able
            if not one.chain
            for gain in weighed_anchors(self._anchors, rows[one.request][0], self._branches)
        ]
        if self.pace is None:
            return found
        found.sort(key=lambda pair: -pair[1][0])
        masses = [mass for _, (mass, _) in found]
        return found[: self.pace.second_count(masses, len(able), self._requests)]

    def _choice(self, able: Sequence[Asking], rows: Rows) -> tuple[Choice, Paths]:
        """Every request's paths, or its chain alone, and how many of all of them to score."""
        paths = {one.request: merged_paths(rows[one.request], self._budget) for one in able}
        if self.pace is None:
            return Choice(sum(map(len, paths.values())), 0.0), paths
        chains = {one.request: chain_paths(rows[one.request][0]) for one in able}
        self._promised = _chances(paths), _chances(chains)
        forked, straight = (
            self.pace.budget(sorted(chain(*found), reverse=True), self._requests, forked)
            for found, forked in zip(self._promised, (len(able), 0), strict=True)
        )
        return (straight, chains) if straight.value > forked.value else (forked, paths)

    def _trees(self, able: Sequence[Asking], rows: Rows) -> tuple[Choice, dict[str, TokenTree]]:
        """The trees of the most probable paths of all requests."""
        choice, paths = self._choice(able, rows)
        ranked = sorted(
            ((chance, one.request) for one in able for chance in paths[one.request].chances),
            key=lambda pair: -pair[0],
        )
        counts = dict.fromkeys(paths, 0)
        for chance, request in ranked[: choice.count]:
            counts[request] += 1
            self.predicted[request] = self.predicted.get(request, 0.0) + chance
        trees = {one.request: self._tree(one, paths, rows, counts[one.request]) for one in able}
        return choice, trees

    def _tree(
        self, one: Asking, paths: Mapping[str, RankedPaths], rows: Rows, nodes: int
    ) -> TokenTree:
        if one.chain or self._chains:
            best = tuple(slot[0] for slot in rows[one.request][0].tokens)
            tree = TokenTree.from_branches(one.anchor, [Branch(best[:nodes], "first")])
        else:
            tree = paths[one.request].tree(one.anchor, nodes)
        return tree.shallow(one.deepest).first(self._budget + 1)


def chain_paths(row: RankedRow) -> RankedPaths:
    """The most probable token of every slot of a row that keeps nothing."""
    chances = accumulate((probs[0] for probs in row.probs), mul)
    parents = tuple(range(len(row.tokens)))
    tokens = tuple(slot[0] for slot in row.tokens)
    return RankedPaths(tokens, parents, (row.source,) * len(tokens), tuple(chances))


def _chances(paths: Paths) -> list[list[float]]:
    return [list(one.chances) for one in paths.values()]
