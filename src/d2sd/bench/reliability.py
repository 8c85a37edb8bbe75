"""Are confidences honest: what a drafter says about its own tokens against what became of them.

Two statements are judged. A *confidence*: the probability that the drafter's token is right, given
that all before it are. And the *posterior* of the boundary (paper Eq. 4): the probability that
exactly i drafted tokens are accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from d2sd.bench.replay import JudgedRow
from d2sd.drafters.boundary import all_accepted, rejection_posterior
from d2sd.train.calibrate import calibration_error

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Statements between two probabilities: how many, their mean, and how often they held."""

    low: float
    high: float
    count: int
    said: float
    held: float


@dataclass(frozen=True)
class Reliability:
    """`error` is the expected calibration error: the bins' gaps, weighed by their counts.

    `chance` is the error that honest statements would show too, because so few were judged.
    """

    count: int
    error: float
    chance: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Boundary:
    """How often exactly `accepted` drafted tokens were right, and how often that was expected."""

    accepted: int
    said: float
    held: float


@dataclass(frozen=True)
class Honesty:
    """Confidences of both passes and the first pass's posterior; None where none was drafted.

    `boundaries` ends with the case that the whole block is right.
    """

    first: Reliability | None
    second: Reliability | None
    posterior: Reliability | None
    boundaries: tuple[Boundary, ...]


def reliability(
    said: Float[Tensor, " statements"], held: Bool[Tensor, " statements"], bins: int = BINS
) -> Reliability:
    """Statements in bins of equal width; empty bins are left out."""
    where = (said * bins).long().clamp(0, bins - 1)
    spread = torch.zeros(bins, dtype=torch.float64)
    spread.index_add_(0, where, (said * (1 - said)).double())  # variances of the bins' sums
    chance = float((2 / torch.pi * spread).sqrt().sum()) / max(len(said), 1)
    found = []
    for number in sorted(set(where.tolist())):
        inside = where == number
        found.append(
            Bin(
                number / bins,
                (number + 1) / bins,
                int(inside.sum()),
                float(said[inside].double().mean()),
                float(held[inside].double().mean()),
            )
        )
    return Reliability(len(said), calibration_error(said, held, bins), chance, tuple(found))


def honesty(rows: Iterable[JudgedRow]) -> Honesty:
    """The judgement of all rows of some replays."""
    rows = list(rows)
    first = [row for row in rows if not row.second and row.kept == 0]
    # near an answer's end the boundary may lie beyond it, whatever it is: those rows are left out
    whole = [row for row in first if row.known == len(row.confidence)]
    return Honesty(
        first=_of_confidences(first),
        second=_of_confidences([row for row in rows if row.second]),
        posterior=_of_posteriors(whole),
        boundaries=boundaries(whole),
    )


def boundaries(rows: Sequence[JudgedRow]) -> tuple[Boundary, ...]:
    """The mean posterior beside the shares of measured boundaries, for rows of one length."""
    if not rows:
        return ()
    drafted = max(len(row.confidence) for row in rows)
    rows = [row for row in rows if len(row.confidence) == drafted]
    confidence = torch.tensor([row.confidence for row in rows], dtype=torch.float64)
    said = torch.stack(
        [torch.cat([rejection_posterior(c), all_accepted(c)[None]]) for c in confidence]
    )
    measured = torch.tensor([row.right for row in rows])
    return tuple(
        Boundary(accepted, float(said[:, accepted].mean()), share)
        for accepted, share in enumerate(
            (measured == i).double().mean().item() for i in range(drafted + 1)
        )
    )


def _of_confidences(rows: Sequence[JudgedRow]) -> Reliability | None:
    """Every slot up to the first wrong one, that one included."""
    said: list[float] = []
    held: list[bool] = []
    for row in rows:
        reached = min(row.right + 1, row.known)
        said += row.confidence[:reached]
        held += [slot < row.right for slot in range(reached)]
    return _judged(said, held)


def _of_posteriors(rows: Sequence[JudgedRow]) -> Reliability | None:
    said: list[float] = []
    held: list[bool] = []
    for row in rows:
        posterior = rejection_posterior(torch.tensor(row.confidence, dtype=torch.float64))
        said += posterior.tolist()
        held += [accepted == row.right for accepted in range(len(posterior))]
    return _judged(said, held)


def _judged(said: Sequence[float], held: Sequence[bool]) -> Reliability | None:
    if not said:
        return None
    return reliability(torch.tensor(said, dtype=torch.float64), torch.tensor(held))
