"""Temperatures that make confidences match what the target really emits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TEMPERATURES = torch.logspace(-1, 1, 81, base=3)
"""Tried values, 1/3 to 3 in steps of 3 %."""

MOST_SLOTS = 2000
"""Slots a temperature is fitted on at most: the fit costs a softmax per slot and tried value."""


@dataclass(frozen=True)
class SlotLogits:
    """Logits of slots at one distance from the last visible token, and the token to come."""

    logits: Float[Tensor, "slots draft_vocab"]
    labels: Int[Tensor, " slots"]


def best_temperature(slots: SlotLogits) -> float:
    """The temperature with the least mean −log q(label); 1 when there is nothing to fit on."""
    if len(slots.labels) == 0:
        return 1.0
    every = -(-len(slots.labels) // MOST_SLOTS)
    logits, labels = slots.logits[::every], slots.labels[::every]
    losses = [torch.nn.functional.cross_entropy(logits / t, labels).item() for t in TEMPERATURES]
    return float(TEMPERATURES[int(torch.tensor(losses).argmin())])


def calibration_error(
    confidence: Float[Tensor, " slots"], right: Bool[Tensor, " slots"], bins: int = 15
) -> float:
    """Expected calibration error: mean gap of confidence and hit rate over equal-width bins."""
    where = (confidence * bins).long().clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, where, (confidence - right.to(confidence)).double())
    return float(gap.abs().sum() / max(len(confidence), 1))


def by_distance(
    logits: Float[Tensor, "blocks drafted draft_vocab"],
    labels: Int[Tensor, "blocks drafted"],
    visible: Int[Tensor, " blocks"],
    known: Bool[Tensor, "blocks drafted"],
) -> list[SlotLogits]:
    """Slots grouped by distance from the last visible one, while the draft before them was right.

    That condition is the one under which the boundary posterior and the tree's path
    probabilities use a confidence. `labels` are draft ids, -1 outside the draft vocabulary.
    """
    drafted = labels.shape[1]
    slot = torch.arange(1, drafted + 1)
    masked = slot >= visible[:, None]
    right = (logits.argmax(-1) == labels) | ~masked
    reached = torch.cat([right.new_ones(len(right), 1), right[:, :-1].long().cumprod(-1) > 0], -1)
    usable = known & masked & reached & (labels >= 0)
    distance = slot - visible[:, None]
    return [
        SlotLogits(logits[usable & (distance == d)].float(), labels[usable & (distance == d)])
        for d in range(drafted)
    ]


def fit_temperatures(groups: Sequence[Sequence[SlotLogits]]) -> tuple[float, ...]:
    """One temperature per distance, from several sequences' groups."""
    return tuple(
        best_temperature(
            SlotLogits(torch.cat([g.logits for g in same]), torch.cat([g.labels for g in same]))
        )
        for same in zip(*groups, strict=True)
    )
