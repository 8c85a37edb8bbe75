"""From whole sequences to training batches of blocks; every batch follows from (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from d2sd.train.features import FeatureSource
from d2sd.train.masking import VisiblePrefix, sample_anchors, slot_weights

PAD = 128
"""Contexts are padded to multiples of this, so that few shapes are compiled."""


@dataclass(frozen=True)
class BlockBatch:
    """Blocks of several sequences over their contexts.

    The first `visible` slots of a block hold tokens, the rest of `ids` is the mask token; `labels`
    are the tokens everywhere, `soft_ids` and `soft_probs` the target's own candidates for them (see
    `Rows`). Slots of weight 0 are visible or past the sequence's end.
    """

    features: Float[Tensor, "sequences rows taps hidden"]
    anchors: Int[Tensor, "sequences blocks"]
    visible: Int[Tensor, "sequences blocks"]
    ids: Int[Tensor, "sequences blocks slots"]
    labels: Int[Tensor, "sequences blocks slots"]
    soft_ids: Int[Tensor, "sequences blocks slots labels"]
    soft_probs: Float[Tensor, "sequences blocks slots labels"]
    weights: Float[Tensor, "sequences blocks slots"]

    @property
    def hidden_rows(self) -> Bool[Tensor, "sequences blocks rows"]:
        """Context rows a block must not see: the anchor's own and all after it."""
        rows = torch.arange(self.features.shape[1], device=self.anchors.device)
        return rows >= self.anchors[..., None]

    @property
    def positions(self) -> Int[Tensor, "sequences blocks slots"]:
        slots = torch.arange(self.ids.shape[-1], device=self.anchors.device)
        return self.anchors[..., None] + slots


@dataclass(frozen=True)
class BlockRecipe:
    """How blocks are cut: their size, what is visible, how slots are weighed."""

    block_size: int
    mask_token_id: int
    prefix: VisiblePrefix
    weight_decay: float
    """Slots over which a slot's weight falls by e."""


def cut_blocks(
    source: FeatureSource,
    sequences: Sequence[int],
    anchors: Sequence[Int[Tensor, " blocks"]],
    recipe: BlockRecipe,
    rng: torch.Generator,
) -> BlockBatch:
    """Blocks at the given anchors of each sequence, on the source's device.

    Contexts are padded on the right. `anchors` and `rng` are the CPU's: what is drawn is the same
    on every device.
    """
    size = recipe.block_size
    lengths = [source.index.length(i) for i in sequences]
    visible = torch.stack([recipe.prefix.draw(len(chosen), size, rng) for chosen in anchors])
    weights = [
        slot_weights(chosen, count, length, size, recipe.weight_decay)
        for chosen, count, length in zip(anchors, visible, lengths, strict=True)
    ]
    read = source.read(sequences)
    device = read[0].tokens.device
    starts, counts = torch.stack(list(anchors)).to(device), visible.to(device)
    slots = torch.arange(size, device=device)
    last = torch.tensor(lengths, device=device)[:, None, None] - 1
    at = (starts[..., None] + slots).minimum(last)
    sequence = torch.arange(len(sequences), device=device)[:, None, None]
    labels = _padded([rows.tokens for rows in read])[sequence, at].long()
    before = sequence, (at - 1).clamp_min(0)  # a token's candidates lie in the row before it
    return BlockBatch(
        features=_padded([rows.features for rows in read]),
        anchors=starts,
        visible=counts,
        ids=labels.masked_fill(slots >= counts[..., None], recipe.mask_token_id),
        labels=labels,
        soft_ids=_padded([rows.soft_ids for rows in read])[before].long(),
        soft_probs=_padded([rows.soft_probs for rows in read])[before],
        weights=torch.stack(weights).to(device),
    )


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stacked with zeros on the right, up to a multiple of `PAD` rows."""
    rows = -(-max(map(len, tensors)) // PAD) * PAD
    stacked = tensors[0].new_zeros(len(tensors), rows, *tensors[0].shape[1:])
    for row, tensor in enumerate(tensors):
        stacked[row, : len(tensor)] = tensor
    return stacked


@dataclass(frozen=True)
class BlockSampler:
    """Random batches: anchors are drawn anew each time a sequence comes up."""

    source: FeatureSource
    sequences: Sequence[int]
    recipe: BlockRecipe
    sequences_per_batch: int = 16
    anchors_per_sequence: int = 64
    seed: int = 0

    @property
    def batches_per_epoch(self) -> int:
        return max(len(self.sequences) // self.sequences_per_batch, 1)

    def batch(self, step: int) -> BlockBatch:
        epoch, number = divmod(step, self.batches_per_epoch)
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        sequences = self._epoch(epoch)[number]
        index = self.source.index
        anchors = [
            sample_anchors(index.prompts[i], index.length(i), self.anchors_per_sequence, rng)
            for i in sequences
        ]
        return cut_blocks(self.source, sequences, anchors, self.recipe, rng)

    def _epoch(self, epoch: int) -> list[list[int]]:
        """All sequences once, shuffled, those of like length together.

        What doesn't fill a batch is left out, another part in every epoch.
        """
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 - 1 - epoch)
        size = self.sequences_per_batch
        shuffled = torch.randperm(len(self.sequences), generator=rng).tolist()
        order = sorted(
            (self.sequences[i] for i in shuffled[: self.batches_per_epoch * size]),
            key=lambda i: -(-self.source.index.length(i) // PAD),
        )
        batches = [order[i * size : (i + 1) * size] for i in range(self.batches_per_epoch)]
        return [batches[i] for i in torch.randperm(len(batches), generator=rng)]
