"""Temperatures that make confidences match what the target really emits.

One temperature per distance from the last visible slot, for each network and each decoding
temperature. The loss that is made small is the squared error of all candidate tokens (Brier): each
is a node that the tree may hold, and its probability is to be that of acceptance. It counts slots
whose token lies outside the draft vocabulary, where every candidate is wrong: the likelihood
cannot, and fitted by it the first shipped drafters stayed 1 to 4 % too sure of themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from d2sd.drafters.config import read_temperatures

TEMPERATURES = torch.logspace(-1, 1, 21, base=3, dtype=torch.float64)
"""Tried values, 1/3 to 3 in steps of 12 %; between them the loss is taken for a parabola."""

MOST_SLOTS = 2000
"""Slots a temperature is fitted on at most: the fit costs a softmax per slot and tried value."""

AT_ONCE = 16
"""Slots whose losses are computed together: memory for as many times all tried values."""

FEWEST_SLOTS = 100
"""A distance with fewer slots is fitted together with those before it."""


@dataclass(frozen=True)
class SlotLogits:
    """Logits of slots at one distance from the last visible token, and the token to come.

    `labels` are draft ids, -1 where the token lies outside the draft vocabulary.
    """

    logits: Float[Tensor, "slots draft_vocab"]
    labels: Int[Tensor, " slots"]


@dataclass(frozen=True)
class LossCurves:
    """Losses at every tried temperature, summed over the slots of each distance. They add up."""

    losses: Float[Tensor, "distances temperatures"]
    slots: Int[Tensor, " distances"]

    @classmethod
    def empty(cls, distances: int) -> LossCurves:
        losses = torch.zeros(distances, len(TEMPERATURES), dtype=torch.float64)
        return cls(losses, torch.zeros(distances, dtype=torch.long))

    def __add__(self, other: LossCurves) -> LossCurves:
        distances = max(len(self.slots), len(other.slots))
        both = LossCurves.empty(distances)
        for curves in (self, other):
            both.losses[: len(curves.slots)] += curves.losses
            both.slots[: len(curves.slots)] += curves.slots
        return both


def candidate_losses(slots: SlotLogits) -> Float[Tensor, "slots temperatures"]:
    """Squared error of all candidates of each slot, at every tried temperature."""
    parts = zip(torch.split(slots.logits, AT_ONCE), torch.split(slots.labels, AT_ONCE), strict=True)
    return torch.cat([_losses(logits.float(), labels) for logits, labels in parts])


def _losses(
    logits: Float[Tensor, "slots draft_vocab"], labels: Int[Tensor, " slots"]
) -> Float[Tensor, "slots temperatures"]:
    probs = (logits[:, None] / TEMPERATURES.to(logits)[:, None]).softmax(-1)
    place = labels.clamp_min(0)[:, None, None].expand(-1, len(TEMPERATURES), 1)
    of_label = 1 - 2 * probs.gather(-1, place)[..., 0]
    return (probs.square().sum(-1) + of_label * (labels >= 0)[:, None]).double()


def loss_curves(by_distance: Sequence[SlotLogits]) -> LossCurves:
    """The curves of slots grouped by distance, at most MOST_SLOTS of each."""
    curves = LossCurves.empty(len(by_distance))
    for distance, slots in enumerate(by_distance):
        if count := len(slots.labels):
            every = -(-count // MOST_SLOTS)
            sample = SlotLogits(slots.logits[::every], slots.labels[::every])
            curves.losses[distance] = candidate_losses(sample).sum(0)
            curves.slots[distance] = len(sample.labels)
    return curves


def lowest(losses: Float[Tensor, " temperatures"]) -> float:
    """The temperature with the least loss, by the parabola through the three lowest points."""
    best = int(losses.argmin().clamp(1, len(losses) - 2))
    left, middle, right = losses[best - 1 : best + 2].tolist()
    bend = left - 2 * middle + right
    if bend <= 0:
        return float(TEMPERATURES[int(losses.argmin())])
    shift = (left - right) / (2 * bend)
    step = float(TEMPERATURES[1] / TEMPERATURES[0])
    return float(TEMPERATURES[best]) * float(step ** min(max(shift, -1.0), 1.0))


def best_temperatures(curves: LossCurves) -> tuple[float, ...]:
    """One temperature per distance; 1 where there is nothing to fit on."""
    found = []
    for distance in range(len(curves.slots)):
        first = distance
        while first > 0 and int(curves.slots[first : distance + 1].sum()) < FEWEST_SLOTS:
            first -= 1
        seen = int(curves.slots[first : distance + 1].sum()) > 0
        found.append(lowest(curves.losses[first : distance + 1].sum(0)) if seen else 1.0)
    return tuple(round(temperature, 3) for temperature in found)


def best_temperature(slots: SlotLogits) -> float:
    """The temperature of one group of slots; 1 when there is nothing to fit on."""
    return best_temperatures(loss_curves([slots]))[0]


def fit_temperatures(groups: Sequence[Sequence[SlotLogits]]) -> tuple[float, ...]:
    """One temperature per distance, from several sequences' groups."""
    joined = [
        SlotLogits(torch.cat([g.logits for g in same]), torch.cat([g.labels for g in same]))
        for same in zip(*groups, strict=True)
    ]
    return best_temperatures(loss_curves(joined))


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
    usable = known & masked & reached
    distance = slot - visible[:, None]
    return [
        SlotLogits(logits[usable & (distance == d)].float(), labels[usable & (distance == d)])
        for d in range(drafted)
    ]


def write_temperatures(
    folder: str | Path, by_decoding_temperature: Mapping[float, Sequence[float]]
) -> None:
    """Put temperatures into a drafter's config.json; those of other decoding temperatures stay.

    The file is replaced in one go: a kill leaves the old one or the new one.
    """
    path = Path(folder) / "config.json"
    values = json.loads(path.read_text())
    home = values.get("dflash_config") or values.get("d2sd_config") or values
    fitted = {**read_temperatures(home.get("temperatures")), **by_decoding_temperature}
    home["temperatures"] = {f"{key:g}": list(fitted[key]) for key in sorted(fitted)}
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(values, indent=2) + "\n")
    unfinished.replace(path)
