"""First drafter, plan, second drafter, for all requests of a batch in two batched passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from d2sd.drafters.best_first import FEW, RankedRow, fetched_rows
from d2sd.drafters.merged import ANCHORS, merged_paths, second_source
from d2sd.drafters.policies import Policy
from d2sd.engines.vllm.passes import BatchedNetwork, NewRows, Wanted
from d2sd.tree import Branch, TokenTree


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


class BatchDrafter:
    """Trees for a batch by the policies block, best-first and merged; `budget` nodes each."""

    def __init__(
        self, policy: Policy, budget: int, first: BatchedNetwork, second: BatchedNetwork | None
    ) -> None:
        self._budget, self._first = budget, first
        self._second = (second or first) if policy.name == "merged" else None
        self._chains = policy.name == "block"
        self._branches = int(policy.options.get("branches", 4))
        self._anchors = ANCHORS[str(policy.options.get("anchors", "mixed"))]
        self._block_size = int(policy.options.get("block_size", first.block_size))

    def read(self, new: Sequence[NewRows]) -> None:
        """What was committed since the last call."""
        if new:
            for network in self._networks():
                network.read(new)

    def forget(self, request: str) -> None:
        """The request has ended."""
        for network in self._networks():
            network.forget(request)

    def _networks(self) -> list[BatchedNetwork]:
        return list(dict.fromkeys(n for n in (self._first, self._second) if n is not None))

    def draft(self, asking: Sequence[Asking]) -> dict[str, TokenTree]:
        """A tree for every request whose tokens were all read."""
        able = [
            one
            for one in asking
            if one.deepest > 0 and self._first.ready(one.request, one.tokens - 1)
        ]
        if not able:
            return {}
        wanted = [
            Wanted(one.request, [(one.anchor,)], one.tokens - 1, one.temperature) for one in able
        ]
        proposals = self._first.propose(wanted, self._block_size)
        few = max(FEW, self._branches + 1)
        rows = {
            one.request: fetched_rows(proposals[one.request], [()], ["first"], few) for one in able
        }
        if self._second is not None:
            self._redraft(self._second, wanted, able, rows)
        return {one.request: self._tree(one, rows[one.request]) for one in able}

    def _redraft(
        self,
        network: BatchedNetwork,
        wanted: Sequence[Wanted],
        able: Sequence[Asking],
        rows: dict[str, list[RankedRow]],
    ) -> None:
        """Add the second pass's rows to those of the requests that may fork."""
        kept = {
            one.request: self._anchors(rows[one.request][0], self._branches)
            for one in able
            if not one.chain
        }
        again = [
            replace(one, visible=[(*one.visible[0], *tokens) for tokens in kept[one.request]])
            for one in wanted
            if kept.get(one.request)
        ]
        if not again:
            return
        proposals = network.propose(again, self._block_size)
        for one in again:
            tokens = kept[one.request]
            sources = [second_source(rows[one.request][0], anchors) for anchors in tokens]
            few = max(FEW, self._branches + 1)
            rows[one.request] += fetched_rows(proposals[one.request], tokens, sources, few)

    def _tree(self, one: Asking, rows: Sequence[RankedRow]) -> TokenTree:
        if one.chain or self._chains:
            chain = tuple(slot[0] for slot in rows[0].tokens)
            tree = TokenTree.from_branches(one.anchor, [Branch(chain, "first")])
        else:
            tree = merged_paths(rows, self._budget).tree(one.anchor)
        return tree.shallow(one.deepest).first(self._budget + 1)
