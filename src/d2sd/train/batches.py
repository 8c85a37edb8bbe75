"""From stored features to training batches of blocks; every batch follows from (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from d2sd.train.features import FeatureStore
from d2sd.train.masking import VisiblePrefix, sample_anchors, slot_weights

PAD = 128
"""Contexts are padded to multiples of this, so that few shapes are compiled."""


@dataclass(frozen=True)
class BlockBatch:
    """Blocks of several sequences over their contexts.

    The first `visible` slots of a block hold tokens, the rest of `ids` is the mask token; `labels`
    are the tokens everywhere, and `label_rows` the store rows of the target's distributions of
    them.
    """

    features: Float[Tensor, "sequences rows taps hidden"]
    anchors: Int[Tensor, "sequences blocks"]
    visible: Int[Tensor, "sequences blocks"]
    ids: Int[Tensor, "sequences blocks slots"]
    labels: Int[Tensor, "sequences blocks slots"]
    label_rows: Int[Tensor, "sequences blocks slots"]
    weights: Float[Tensor, "sequences blocks slots"]

    @property
    def hidden_rows(self) -> Bool[Tensor, "sequences blocks rows"]:
        """Context rows a block must not see: the anchor's own and all after it."""
        return torch.arange(self.features.shape[1]) >= self.anchors[..., None]

    @property
    def positions(self) -> Int[Tensor, "sequences blocks slots"]:
        return self.anchors[..., None] + torch.arange(self.ids.shape[-1])


@dataclass(frozen=True)
class BlockRecipe:
    """How blocks are cut: their size, what is visible, how slots are weighed."""

    block_size: int
    mask_token_id: int
    prefix: VisiblePrefix
    weight_decay: float
    """Slots over which a slot's weight falls by e."""


def cut_blocks(
    store: FeatureStore,
    sequences: Sequence[int],
    anchors: Sequence[Int[Tensor, " blocks"]],
    recipe: BlockRecipe,
    rng: torch.Generator,
) -> BlockBatch:
    """Blocks at the given anchors of each sequence; contexts padded on the right."""
    lengths = [sequence_length(store, i) for i in sequences]
    rows = -(-max(lengths) // PAD) * PAD
    features = store.features.new_zeros(len(sequences), rows, *store.features.shape[1:])
    slots = torch.arange(recipe.block_size)
    visible, weights, label_rows = [], [], []
    for row, (sequence, length, chosen) in enumerate(zip(sequences, lengths, anchors, strict=True)):
        start = store.index.starts[sequence]
        features[row, :length] = store.features[start : start + length]
        count = recipe.prefix.draw(len(chosen), recipe.block_size, rng)
        visible.append(count)
        weights.append(slot_weights(chosen, count, length, recipe.block_size, recipe.weight_decay))
        label_rows.append(start + (chosen[:, None] + slots - 1).clamp(0, length - 2))
    stacked_rows = torch.stack(label_rows)
    labels = store.tokens[stacked_rows + 1].long()
    counts = torch.stack(visible)
    return BlockBatch(
        features=features,
        anchors=torch.stack(list(anchors)),
        visible=counts,
        ids=labels.masked_fill(slots >= counts[..., None], recipe.mask_token_id),
        labels=labels,
        label_rows=stacked_rows,
        weights=torch.stack(weights),
    )


def sequence_length(store: FeatureStore, sequence: int) -> int:
    starts = store.index.starts
    return starts[sequence + 1] - starts[sequence]


@dataclass(frozen=True)
class BlockSampler:
    """Random batches: anchors are drawn anew each time a sequence comes up."""

    store: FeatureStore
    sequences: Sequence[int]
    recipe: BlockRecipe
    sequences_per_batch: int = 16
    anchors_per_sequence: int = 64
    seed: int = 0

    @property
    def batches_per_epoch(self) -> int:
        return max(len(self.sequences) // self.sequences_per_batch, 1)

    def batch(self, step: int) -> BlockBatch:
        epoch, index = divmod(step, self.batches_per_epoch)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        sequences = self._epoch(epoch)[index]
        anchors = [
            sample_anchors(
                self.store.index.prompts[i],
                sequence_length(self.store, i),
                self.anchors_per_sequence,
                rng,
            )
            for i in sequences
        ]
        return cut_blocks(self.store, sequences, anchors, self.recipe, rng)

    def _epoch(self, epoch: int) -> list[list[int]]:
        """All sequences once, shuffled, those of like length together."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 - 1 - epoch)
        shuffled = torch.randperm(len(self.sequences), generator=rng).tolist()
        order = sorted(
            (self.sequences[i] for i in shuffled),
            key=lambda i: -(-sequence_length(self.store, i) // PAD),
        )
        size = self.sequences_per_batch
        batches = [order[i * size : (i + 1) * size] for i in range(self.batches_per_epoch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=rng)]
