"""Where a greedy chain will most likely break: pure functions of its confidences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def rejection_posterior(confidence: Float[Tensor, " drafted"]) -> Float[Tensor, " drafted"]:
    """Probability that exactly i drafted tokens are accepted, i = 0 .. drafted - 1 (paper Eq. 4).

    `confidence[k]` is the drafter's probability of its own token at slot k. Tokens are taken to
    be accepted independently given that all before them were; see `all_accepted` for the rest.
    """
    reach = torch.cat([confidence.new_ones(1), confidence.cumprod(0)[:-1]])
    return reach * (1 - confidence)


def all_accepted(confidence: Float[Tensor, " drafted"]) -> Float[Tensor, ""]:
    """Probability that every drafted token is accepted: what the posterior lacks to sum to 1."""
    return confidence.prod()


def likely_boundaries(posterior: Float[Tensor, " drafted"], branches: int) -> list[int]:
    """The `branches` most probable boundaries (all, if there are fewer), best first (paper Eq. 5).

    Of equally probable ones the shallower comes first, so the choice is the same everywhere.
    """
    order = posterior.sort(descending=True, stable=True).indices
    return [int(boundary) for boundary in order[:branches].tolist()]


def expected_boundary(confidence: Sequence[float]) -> int:
    """The most probable boundary, that all are accepted included: the mode of Eq. 4.

    Of equally probable ones the shallowest. On the host, because it is asked for at every step.
    """
    reach, chance, expected = 1.0, -1.0, 0
    for boundary, sure in enumerate(confidence):
        breaks = reach * (1 - sure)
        if breaks > chance:
            chance, expected = breaks, boundary
        reach *= sure
    return len(confidence) if reach > chance else expected
