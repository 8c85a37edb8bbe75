"""Arms of `dual` that take one idea of the method away: if one does as well, the idea adds nothing.

Three are boundary choices, `DualDrafter(..., choose=even_boundaries)`: they see how many boundaries
there are and not how probable. The last is a second proposer that never sees what a row keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.drafters.proposer import Asked, Proposal, Proposer
from d2sd.interfaces import Context


class RandomBoundaries:
    """Boundaries at random, all equally probable and no two alike, anew in every step."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, posterior: Float[Tensor, " drafted"], branches: int) -> list[int]:
        order = torch.randperm(len(posterior), generator=self._rng)
        return [int(boundary) for boundary in order[:branches].tolist()]


def even_boundaries(posterior: Float[Tensor, " drafted"], branches: int) -> list[int]:
    """The starts of `branches` stretches of equal length (all boundaries, if there are fewer).

    What they lack against the likely boundaries is what the confidences are worth.
    """
    drafted = len(posterior)
    count = min(branches, drafted)
    return [stretch * drafted // count for stretch in range(count)]


def early_boundaries(posterior: Float[Tensor, " drafted"], branches: int) -> list[int]:
    """The first `branches` boundaries, 0 included (all, if there are fewer).

    Where few tokens are accepted no other fixed choice is better, so this is the harder test.
    """
    return list(range(min(branches, len(posterior))))


class UnseenPrefixProposer(Proposer):
    """What `inner` says having seen the anchor alone, cut to what every row asks for.

    A pass has one row, whatever is asked: all rows get the same tokens at the same slots, so a
    redraft does not depend on the prefix it is hung behind. As the second proposer of `dual` it
    shows what that dependence is worth. Its pass is cheaper than dual's: compare acceptance
    lengths at equal nodes, not speed.
    """

    def __init__(self, inner: Proposer) -> None:
        self.block_size = inner.block_size
        self._inner = inner

    def propose(
        self, context: Context, visible: Sequence[tuple[int, ...]], block_size: int | None = None
    ) -> Proposal:
        whole = self._inner.propose(context, [(context.anchor,)], block_size)
        kept = tuple(len(row) - 1 for row in visible)
        device = whole.logits.device
        slots = [slot for shown in kept for slot in range(shown, whole.slots)]
        places = torch.tensor(slots, dtype=torch.long, device=device)
        return Proposal(
            whole.logits[places],
            Asked.of(kept, whole.slots, device),
            whole.token_ids,
            None if whole.given is None else whole.given[places],
        )
