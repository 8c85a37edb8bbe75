"""What happens around SGLang's passes: features are read, and trees drafted and followed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.engines.batches.clock import StepClock
from d2sd.engines.batches.passes import NewRows
from d2sd.engines.batches.placement import PlacedTree, Placement
from d2sd.engines.batches.plan import Asking, BatchDrafter
from d2sd.engines.batches.prices import Line
from d2sd.engines.sglang.layout import path_of
from d2sd.tree import TokenTree


@dataclass
class FixedWidth(Line):
    """A line whose passes have so many rows for every request, however small the trees are."""

    now: int = 0
    """Rows of the step that is being planned or was just made."""

    def add(self, rows: int, seconds: float) -> None:
        super().add(self.now, seconds)

    def at(self, rows: int) -> float:
        return super().at(self.now)


class Steps:
    """A batch's requests are SGLang's `Req`, told apart by `rid`.

    SGLang gives every request `rows` rows in each pass of decoding. `context` is the most tokens
    that a request may have.
    """

    def __init__(self, drafter: BatchDrafter, rows: int, context: int, taps: int) -> None:
        self._drafter, self._rows, self._context, self._taps = drafter, rows, context, taps
        self._placement = Placement([])
        self._clock = StepClock()
        self._line = FixedWidth()
        if drafter.pace is not None:
            drafter.pace.target = self._line
        self._reading: set[str] = set()
        self._decoding: set[str] = set()

    def prefilled(
        self,
        requests: Sequence[Any],
        starts: Sequence[int],
        counts: Sequence[int],
        features: Float[Tensor, "rows columns"],
    ) -> None:
        """Of each request `counts` tokens from `starts` on were read, one after the other."""
        names = {one.rid for one in requests}
        self._forget(self._reading - names)
        self._clock = StepClock()  # a pass that reads prompts says nothing of decoding
        begin = 0
        for one, start, count in zip(requests, starts, counts, strict=True):
            rows = features[begin : begin + count].clone()
            begin += count
            self._drafter.read([NewRows(one.rid, start, self._by_tap(rows))])
            whole = start + count >= _tokens(one)
            (self._decoding if whole else self._reading).add(one.rid)
            (self._reading if whole else self._decoding).discard(one.rid)

    def draft(self, requests: Sequence[Any], computed: Sequence[int]) -> list[TokenTree]:
        """A tree for every request of a pass of decoding, of which `computed` tokens are cached.

        Where nothing is drafted it is the last token alone.
        """
        names = {one.rid for one in requests}
        self._forget(self._decoding - names)
        self._decoding = names
        self._line.now = self._rows * len(requests)
        both = list(zip(requests, computed, strict=True))
        most = self._drafter.wanted(len(both))
        asking = [self._asking(one, cached) for one, cached in both] if most else []
        trees = self._drafter.draft([one for one in asking if one is not None], most)
        self._placement = Placement(
            [
                PlacedTree(one.rid, trees.get(one.rid) or _alone(one), row, row, cached)
                for row, (one, cached) in zip(self._firsts(len(both)), both, strict=True)
            ]
        )
        self._clock.started()
        return [placed.tree for placed in self._placement.trees]

    def committed(
        self, emitted: Sequence[Sequence[int]], features: Float[Tensor, "rows columns"]
    ) -> None:
        """What each request of the last `draft` emitted, and the features of that pass."""
        placement = self._placement
        placement.paths = [
            path_of(placed.tree, tokens)
            for placed, tokens in zip(placement.trees, emitted, strict=True)
        ]
        new = []
        for number, placed in enumerate(placement.trees):
            rows = torch.tensor(placement.committed_rows(number), device=features.device)
            new.append(NewRows(placed.request, placed.committed, self._by_tap(features[rows])))
        self._drafter.read(new)
        self._clock.scored(placement, self._drafter)

    def _firsts(self, requests: int) -> range:
        return range(0, requests * self._rows, self._rows)

    def _by_tap(self, rows: Tensor) -> Tensor:
        return rows.view(len(rows), self._taps, -1)

    def _forget(self, gone: set[str]) -> None:
        """Ended, aborted or set back: one set back is read again before it goes on."""
        for name in gone:
            self._drafter.forget(name)
        self._reading -= gone
        self._decoding -= gone

    def _asking(self, one: Any, cached: int) -> Asking | None:
        """What to draft for a request; None: nothing, where drafts would be judged wrongly."""
        settings, produced = one.sampling_params, len(one.output_ids)
        tokens = cached + 1
        if tokens != _tokens(one) or not _judged_rightly(settings, produced):
            return None
        left = self._context - tokens
        if settings.max_new_tokens is not None:
            left = min(left, settings.max_new_tokens - produced)
        greedy = settings.top_k == 1  # so SGLang notes temperature 0
        temperature = 0.0 if greedy else settings.temperature
        return Asking(one.rid, one.output_ids[-1], tokens, left - 1, temperature)


def _tokens(one: Any) -> int:
    return len(one.origin_input_ids) + len(one.output_ids)


def _alone(one: Any) -> TokenTree:
    return TokenTree((one.output_ids[-1],), (-1,), ("anchor",))


def _judged_rightly(settings: Any, produced: int) -> bool:
    """SGLang applies what looks back at the output once a step, the same for every node."""
    return (
        settings.frequency_penalty == 0
        and settings.presence_penalty == 0
        and settings.repetition_penalty == 1
        and settings.min_new_tokens <= produced
    )
