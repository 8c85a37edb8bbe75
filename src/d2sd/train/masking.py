"""Which positions become anchors, which slots are visible, and how slots are weighed. Pure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


class VisiblePrefix(ABC):
    """How many leading slots of a block (the anchor included) hold real tokens in training."""

    @abstractmethod
    def draw(
        self, blocks: int, block_size: int, rng: torch.Generator
    ) -> Int[Tensor, " blocks"]: ...


@dataclass(frozen=True)
class AnchorOnly(VisiblePrefix):
    """The first drafter: only the anchor is visible (DFlash §4.2)."""

    def draw(self, blocks: int, block_size: int, rng: torch.Generator) -> Int[Tensor, " blocks"]:
        return torch.ones(blocks, dtype=torch.long)


@dataclass(frozen=True)
class TruncatedGeometric(VisiblePrefix):
    """The second drafter: l drafted tokens visible, Pr(l = j) ∝ decay^j, j = 0..block_size-2.

    D²SD §3.4. The case j = 0, which inference can select and the authors' code leaves out, is in.
    """

    decay: float = 0.9

    def draw(self, blocks: int, block_size: int, rng: torch.Generator) -> Int[Tensor, " blocks"]:
        mass = self.decay ** torch.arange(block_size - 1, dtype=torch.float64)
        return 1 + torch.multinomial(mass, blocks, replacement=True, generator=rng)


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


def slot_weights(
    anchors: Int[Tensor, " blocks"],
    visible: Int[Tensor, " blocks"],
    length: int,
    block_size: int,
    decay: float,
) -> Float[Tensor, "blocks slots"]:
    """exp(-(k - v) / decay) from the first masked slot v on; 0 where visible or past the end.

    D²SD Eq. 7, where the decay rate is called τ. Slot 0 is the anchor.
    """
    slot = torch.arange(block_size)
    weights = torch.exp(-(slot - visible[:, None]) / decay)
    known = (slot >= visible[:, None]) & (anchors[:, None] + slot < length)
    return torch.where(known, weights, 0.0)
