"""Features of whole passes, kept as they are until somebody drafts from them."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.engines.batches.passes import NewRows
from d2sd.engines.batches.placement import Placement, PlainPass

MANY = 64
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

    def rows(self) -> list[NewRows]:
        """All passes of a request in one piece."""
        parts = torch.stack(self.features, 1).unbind()
        return [NewRows(*one) for one in zip(self.requests, self.starts, parts, strict=True)]


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
            for rows in (one.rows() if isinstance(one, _Stretch) else _committed(*one))
            if rows.request in alive
        ]


def _committed(placement: Placement, features: Tensor) -> list[NewRows]:
    """What a pass committed of each request: known tokens and its accepted path."""
    numbers = range(len(placement.trees))
    rows = [placement.committed_rows(number) for number in numbers]
    all_rows = [row for own in rows for row in own]
    if all_rows != list(range(len(features))):
        features = features[torch.tensor(all_rows, device=features.device)]
    parts = torch.split(features, [len(own) for own in rows])
    return [
        NewRows(placed.request, placed.committed - (placed.row - placed.first_row), part)
        for placed, part in zip(placement.trees, parts, strict=True)
    ]
