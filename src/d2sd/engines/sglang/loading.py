"""The drafters that a user named, beside a loaded target."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from d2sd.drafters.checkpoint import load_network
from d2sd.drafters.network import DraftNetwork
from d2sd.engines.batches.batch_pass import TargetEnds
from d2sd.engines.batches.passes import BatchedNetwork
from d2sd.engines.batches.settings import Settings


@dataclass(frozen=True)
class Facts:
    """What a drafter has to fit."""

    name: str
    hidden: int
    vocabulary: int
    layers: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Loaded:
    """The networks, and the target layers whose outputs they read, in ascending order."""

    networks: list[BatchedNetwork]
    taps: tuple[int, ...]


def load(settings: Settings, facts: Facts, ends: TargetEnds) -> Loaded:
    """Both networks, or the one named twice. Raises ValueError for a drafter of another target."""
    names = dict.fromkeys(name for name in (settings.first, settings.second) if name)
    networks = [load_network(name, facts.dtype).to(facts.device) for name in names]
    for name, network in zip(names, networks, strict=True):
        _check(name, network, facts)
    taps = tuple(sorted({tap for network in networks for tap in network.config.taps}))
    columns = [[taps.index(tap) for tap in network.config.taps] for network in networks]
    batched = [
        BatchedNetwork(network, ends, own) for network, own in zip(networks, columns, strict=True)
    ]
    return Loaded(batched, taps)


def _check(name: str, network: DraftNetwork, facts: Facts) -> None:
    config = network.config
    ours, theirs = (config.hidden_size, config.vocab_size), (facts.hidden, facts.vocabulary)
    if ours != theirs or max(config.taps) >= facts.layers - 1:
        raise ValueError(
            f"the drafter {name!r} has hidden size {ours[0]}, {ours[1]} tokens and reads layer "
            f"{max(config.taps)}; the target {facts.name} has {theirs[0]}, {theirs[1]} tokens and "
            f"gives layers 0 to {facts.layers - 2}; choose the drafter trained for this target"
        )
