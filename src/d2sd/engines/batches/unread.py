"""Features of whole passes, kept as they are until somebody drafts from them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.engines.batches.passes import NewRows
from d2sd.engines.batches.placement import Placement, PlainPass

MANY = 128
"""Passes after which they should be taken: until then they hold what ended requests left, too."""


@dataclass
class _Stretch:
    """Plain passes of the same requests, one after the other."""

    requests: list[str]
    starts: list[int]
    features: list[Tensor]

    def takes(self, plain: PlainPass) -> bool:
        """Whether this pass comes next."""
        passes = len(self.features)
        return plain.requests == self.requests and plain.starts == [
            start + passes for start in self.starts
        ]

    def rows(self, alive: Container[str]) -> list[NewRows]:
        """All passes of a request in one piece, of these requests alone."""
        places = [place for place, request in enumerate(self.requests) if request in alive]
        if not places:
            return []
        parts = torch.stack(_rows(self.features, places), 1).unbind()
        return [
            NewRows(self.requests[place], self.starts[place], part)
            for place, part in zip(places, parts, strict=True)
        ]


class UnreadPasses:
    """Sorting a pass's rows by request costs as much as a plain step may, and most are never
    drafted from: so it is done for many passes at once, and for requests that still live."""

    def __init__(self) -> None:
        self._kept: list[_Stretch | tuple[Placement, Tensor]] = []
        self._passes = 0

    @property
    def many(self) -> bool:
        """Whether they should be taken although nobody drafts."""
        return self._passes >= MANY

    def add(
        self, placed: Placement | PlainPass, features: Float[Tensor, "rows taps hidden"]
    ) -> None:
        """A pass, after its walk."""
        self._passes += 1
        if isinstance(placed, Placement):
            self._kept.append((placed, features))
            return
        last = self._kept[-1] if self._kept else None
        if isinstance(last, _Stretch) and last.takes(placed):
            last.features.append(features)
        else:
            self._kept.append(_Stretch(list(placed.requests), list(placed.starts), [features]))

    def take(self, alive: Container[str]) -> list[NewRows]:
        """The rows of these requests in the order of the passes; nothing is left here."""
        kept, self._kept, self._passes = self._kept, [], 0
        return [
            rows
            for one in kept
            for rows in (one.rows(alive) if isinstance(one, _Stretch) else _committed(*one, alive))
        ]


def _committed(placement: Placement, features: Tensor, alive: Container[str]) -> list[NewRows]:
    """What a pass committed of each of these requests: known tokens and its accepted path."""
    places = [place for place, one in enumerate(placement.trees) if one.request in alive]
    if not places:
        return []
    rows = [placement.committed_rows(place) for place in places]
    [committed] = _rows([features], [row for own in rows for row in own])
    parts = torch.split(committed, [len(own) for own in rows])
    placed = [placement.trees[place] for place in places]
    return [
        NewRows(one.request, one.committed - (one.row - one.first_row), part)
        for one, part in zip(placed, parts, strict=True)
    ]


def _rows(passes: list[Tensor], rows: list[int]) -> list[Tensor]:
    """These rows of passes that have equally many; nothing is copied where they are all."""
    if rows == list(range(len(passes[0]))):
        return passes
    index = torch.tensor(rows, device=passes[0].device)
    return [one[index] for one in passes]
