"""From whole sequences to training batches of blocks; every batch follows from (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from d2sd.train.features import FeatureSource, Rows
from d2sd.train.masking import VisiblePrefix, emitted_probs, sample_anchors, slot_weights

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
    read = source.read(sequences)
    device = read[0].tokens.device
    starts = torch.stack(list(anchors)).to(device)
    slots = torch.arange(size, device=device)
    positions = starts[..., None] + slots
    last = torch.tensor(lengths, device=device)[:, None, None] - 1
    held = _Held.at(positions.minimum(last), read)

    def emitted() -> Tensor:
        probs = held.emitted_probs(torch.tensor(source.index.draft_ids, device=device))
        return probs.where(positions <= last, 1.0).flatten(0, 1).cpu()

    visible = recipe.prefix.draw(starts.numel(), size, rng, emitted).view(starts.shape)
    weights = [
        slot_weights(chosen, count, length, size, recipe.weight_decay)
        for chosen, count, length in zip(anchors, visible, lengths, strict=True)
    ]
    counts = visible.to(device)
    return BlockBatch(
        features=_padded([rows.features for rows in read]),
        anchors=starts,
        visible=counts,
        ids=held.labels.masked_fill(slots >= counts[..., None], recipe.mask_token_id),
        labels=held.labels,
        soft_ids=held.soft_ids,
        soft_probs=held.soft_probs,
        weights=torch.stack(weights).to(device),
    )


@dataclass(frozen=True)
class _Held:
    """What sequences hold at given positions: tokens, and the target's candidates for them."""

    labels: Int[Tensor, "sequences blocks slots"]
    soft_ids: Int[Tensor, "sequences blocks slots labels"]
    soft_probs: Float[Tensor, "sequences blocks slots labels"]

    @classmethod
    def at(cls, positions: Int[Tensor, "sequences blocks slots"], read: Sequence[Rows]) -> _Held:
        sequence = torch.arange(len(read), device=positions.device)[:, None, None]
        before = sequence, (positions - 1).clamp_min(0)  # candidates lie in the row before
        return cls(
            labels=_padded([rows.tokens for rows in read])[sequence, positions].long(),
            soft_ids=_padded([rows.soft_ids for rows in read])[before].long(),
            soft_probs=_padded([rows.soft_probs for rows in read])[before],
        )

    def emitted_probs(
        self, draft_ids: Int[Tensor, " draft_vocab"]
    ) -> Float[Tensor, "sequences blocks slots"]:
        return emitted_probs(draft_ids[self.soft_ids], self.soft_probs.float(), self.labels)


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
