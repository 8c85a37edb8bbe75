"""Which positions become anchors, which slots are visible and which are learned from. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SURPRISE_FLOOR = 1e-3
"""Least surprise a slot is given: near 1 a stored probability has a resolution of 0.004."""


EmittedProbs = Callable[[], Float[Tensor, "blocks slots"]]
"""Gives the target's probability of the token in each slot; worked out only when asked."""


class VisiblePrefix(ABC):
    """How many leading slots of a block (the anchor included) hold real tokens in training."""

    @abstractmethod
    def draw(
        self,
        blocks: int,
        block_size: int,
        rng: torch.Generator,
        emitted: EmittedProbs | None = None,
    ) -> Int[Tensor, " blocks"]:
        """Visible slots of each block, 1 to block_size - 1 (the last slot is always masked).

        `emitted` may be left out where the law doesn't depend on the tokens. 1 past the answer's
        end.
        """


@dataclass(frozen=True)
class AnchorOnly(VisiblePrefix):
    """The first drafter: only the anchor is visible (DFlash §4.2)."""

    def draw(
        self,
        blocks: int,
        block_size: int,
        rng: torch.Generator,
        emitted: EmittedProbs | None = None,
    ) -> Int[Tensor, " blocks"]:
        return torch.ones(blocks, dtype=torch.long)


@dataclass(frozen=True)
class TruncatedGeometric(VisiblePrefix):
    """The second drafter: l drafted tokens visible, Pr(l = j) ∝ decay^j, j = 0..block_size-2.

    D²SD §3.4. The case j = 0, which inference can select and the authors' code leaves out, is in.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        _check(self.decay)

    def draw(
        self,
        blocks: int,
        block_size: int,
        rng: torch.Generator,
        emitted: EmittedProbs | None = None,
    ) -> Int[Tensor, " blocks"]:
        mass = _powers(self.decay, block_size)
        return 1 + torch.multinomial(mass, blocks, replacement=True, generator=rng)


@dataclass(frozen=True)
class Mixture(VisiblePrefix):
    """One network for both passes: the anchor alone in `anchor_share` of the blocks.

    In the others Pr(l = j) ∝ decay^j, j = 1..block_size-2.
    """

    anchor_share: float = 0.5
    decay: float = 0.9

    def __post_init__(self) -> None:
        _check(self.decay, self.anchor_share)

    def draw(
        self,
        blocks: int,
        block_size: int,
        rng: torch.Generator,
        emitted: EmittedProbs | None = None,
    ) -> Int[Tensor, " blocks"]:
        mass = _with_anchor_share(_powers(self.decay, block_size), self.anchor_share)
        return 1 + torch.multinomial(mass, blocks, replacement=True, generator=rng)


@dataclass(frozen=True)
class Reanchored(VisiblePrefix):
    """The last visible token is one that was hard to foresee.

    Pr(l = j) ∝ decay^j · (1 − the target's probability of the token in slot j), j =
    1..block_size-2; in `anchor_share` of the blocks the anchor alone is visible.

    In decoding, the second pass of a merged tree continues alternatives: tokens the first drafter
    did not rank first. Answers say nothing of what follows an alternative the target did not
    emit. They need not: such a row only counts when the target does emit its last visible token.
    So what a row has to know is how the true text goes on after a token that the first drafter
    did not expect, and that is in every answer. Which slots those are depends on the first
    drafter; here the target's own doubt stands for it, which needs no drafter and no second pass
    over the data. Of a sampled answer it is the chance that the draw came out otherwise; of a
    greedy one, how close the decision was.
    """

    decay: float = 0.9
    anchor_share: float = 0.0

    def __post_init__(self) -> None:
        _check(self.decay, self.anchor_share)

    def draw(
        self,
        blocks: int,
        block_size: int,
        rng: torch.Generator,
        emitted: EmittedProbs | None = None,
    ) -> Int[Tensor, " blocks"]:
        assert emitted is not None, "Reanchored draws by the target's probabilities"
        surprise = (1 - emitted()[:, : block_size - 1].double()).clamp_min(SURPRISE_FLOOR)
        mass = _with_anchor_share(_powers(self.decay, block_size) * surprise, self.anchor_share)
        return 1 + torch.multinomial(mass, 1, generator=rng).squeeze(-1)


def emitted_probs(
    ids: Int[Tensor, "*slots labels"],
    probs: Float[Tensor, "*slots labels"],
    right: Int[Tensor, "*slots"],
) -> Float[Tensor, "*slots"]:
    """The target's probability of the token it emitted, 0 where its labels don't hold it.

    `ids` and `right` both in the target's ids, or both in draft ids with -1 outside them.
    """
    return torch.where(ids == right[..., None], probs, 0.0).sum(-1)


def _check(decay: float, anchor_share: float = 0.0) -> None:
    if not 0 < decay <= 1:
        raise ValueError(f"prefix decay is {decay}; it must be above 0 and at most 1")
    if not 0 <= anchor_share <= 1:
        raise ValueError(f"anchor share is {anchor_share}; it must be from 0 to 1")


def _powers(decay: float, block_size: int) -> Tensor:
    """decay^l of l visible drafted tokens, l = 0..block_size-2."""
    return decay ** torch.arange(block_size - 1, dtype=torch.float64)


def _with_anchor_share(
    mass: Float[Tensor, "*blocks prefixes"], anchor_share: float
) -> Float[Tensor, "*blocks prefixes"]:
    """Probabilities with that of l = 0 as given, the rest as `mass`; all l = 0 without a rest."""
    rest = mass[..., 1:]
    shared = (1 - anchor_share) * rest / rest.sum(-1, keepdim=True)
    alone = anchor_share if rest.shape[-1] else 1.0
    return torch.cat([torch.full_like(mass[..., :1], alone), shared], -1)


def sample_anchors(
    prompt: int, length: int, count: int, rng: torch.Generator
) -> Int[Tensor, " count"]:
    """`count` anchor positions in a sequence of `length` tokens, sorted.

    Every position decoding can stand on is eligible: the last prompt token, then every answer
    token but the last, which has no successor to predict. Repeats only when there are too few.
    """
    eligible = torch.arange(prompt - 1, length - 1)
    if len(eligible) >= count:
        chosen = eligible[torch.randperm(len(eligible), generator=rng)[:count]]
    else:
        chosen = eligible[torch.randint(len(eligible), (count,), generator=rng)]
    return chosen.sort().values


def learned_slots(
    anchors: Int[Tensor, " blocks"],
    visible: Int[Tensor, " blocks"],
    length: int,
    block_size: int,
) -> Bool[Tensor, "blocks slots"]:
    """Masked slots with a token to learn: from the first masked one to the answer's end."""
    slot = torch.arange(block_size)
    return (slot >= visible[:, None]) & (anchors[:, None] + slot < length)
