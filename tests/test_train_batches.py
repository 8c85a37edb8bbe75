"""Batches of blocks against a slow reading of the same sequences."""

from dataclasses import dataclass, fields

import pytest
import torch

from answers import random_responses
from d2sd.train.batches import BlockBatch, BlockRecipe, BlockSampler, cut_blocks
from d2sd.train.features import FeatureSource, KeptFeatures, OnlineFeatures
from d2sd.train.masking import AnchorOnly, TruncatedGeometric, VisiblePrefix
from d2sd.train.store import build_store

RESPONSES = random_responses(22)
RECIPE = BlockRecipe(6, 96, TruncatedGeometric(0.9))


@pytest.fixture(scope="module")
def source(tiny_llama):
    return KeptFeatures(OnlineFeatures(tiny_llama, RESPONSES, (0, 2), range(90)))


def sampler(source, seed=0):
    return BlockSampler(source, range(len(RESPONSES)), RECIPE, 4, 5, seed)


def equal(ours: BlockBatch, theirs: BlockBatch) -> bool:
    return all(
        torch.equal(getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(BlockBatch)
    )


def test_every_slot_holds_its_token_its_label_and_the_targets_candidates(source):
    sequences = [4, 0, 13]
    anchors = [torch.arange(p - 1, p + 2) for p in (source.index.prompts[i] for i in sequences)]
    anchors[1] = torch.full((3,), source.index.length(0) - 2)  # blocks past the end
    rngs = [torch.Generator().manual_seed(row) for row in range(3)]
    batch = cut_blocks(source, sequences, anchors, RECIPE, rngs)
    checked = 0
    for row, (sequence, rows) in enumerate(zip(sequences, source.read(sequences), strict=True)):
        tokens = RESPONSES[sequence].tokens
        assert torch.equal(batch.features[row, : len(tokens)], rows.features)
        assert not batch.features[row, len(tokens) :].any()
        for block, anchor in enumerate(anchors[row].tolist()):
            visible = int(batch.visible[row, block])
            assert batch.hidden_rows[row, block].nonzero()[0] == anchor
            for slot in range(6):
                position = anchor + slot
                assert batch.positions[row, block, slot] == position
                known = position < len(tokens)
                assert batch.learned[row, block, slot] == (known and slot >= visible)
                if slot >= visible:
                    assert batch.ids[row, block, slot] == 96
                elif known:
                    assert batch.ids[row, block, slot] == tokens[position]
                if known and slot > 0:
                    checked += 1
                    assert batch.labels[row, block, slot] == tokens[position]
                    candidates, chances = rows.soft_ids[position - 1], rows.soft_probs[position - 1]
                    assert torch.equal(batch.soft_ids[row, block, slot], candidates.long())
                    assert torch.equal(batch.soft_probs[row, block, slot], chances)
    assert checked > 20


def test_contexts_are_padded_to_a_multiple(source):
    assert sampler(source).batch(0).features.shape[:2] == (4, 128)


def test_a_batch_follows_from_seed_and_step(source, tiny_llama):
    fresh = OnlineFeatures(tiny_llama, RESPONSES, (0, 2), range(90))
    one = sampler(source)
    wanted = [one.batch(step) for step in range(7)]
    for step in (6, 2, 0):  # in another order, from rows not read before
        assert equal(sampler(fresh).batch(step), wanted[step])
    assert not torch.equal(sampler(source, seed=1).batch(0).anchors, wanted[0].anchors)
    assert not torch.equal(wanted[5].anchors, wanted[0].anchors)


def test_stored_features_make_the_same_batches(source, tiny_llama, tmp_path):
    stored = build_store(tiny_llama, RESPONSES, tmp_path, (0, 2), range(90))
    for step in range(6):
        assert equal(sampler(stored).batch(step), sampler(source).batch(step))


def test_an_epoch_has_no_sequence_twice_and_leaves_out_others_each_time(source):
    one = sampler(source)
    assert one.batches_per_epoch == 5
    seen = []
    for epoch in range(6):
        sequences = [i for batch in one._epoch(epoch) for i in batch]
        assert len(set(sequences)) == len(sequences) == 20
        seen.append(frozenset(sequences))
    assert len(set(seen)) > 1
    assert frozenset().union(*seen) == set(range(22))


class Elsewhere(FeatureSource):
    """Rows on the device "meta", which has shapes alone and mixes with no other."""

    def __init__(self, source):
        self.index, self.scale, self.source = source.index, source.scale, source

    def read(self, sequences):
        return [rows.to(torch.device("meta")) for rows in self.source.read(sequences)]


@pytest.mark.parametrize("part", [range(1), range(1, 4), range(2, 4)])
def test_a_part_of_a_batch_is_what_the_whole_holds_there(source, part):
    whole, own = sampler(source).batch(3), sampler(source).batch(3, part)
    for f in fields(BlockBatch):
        assert torch.equal(getattr(own, f.name), getattr(whole, f.name)[part.start : part.stop])


@pytest.mark.parametrize("prefix", [AnchorOnly(), TruncatedGeometric(0.9)])
def test_a_batch_lies_on_the_device_of_its_rows(source, prefix):
    recipe = BlockRecipe(6, 96, prefix)
    anchors = [torch.tensor([3, 4]), torch.tensor([5, 6])]
    batch = cut_blocks(Elsewhere(source), [0, 1], anchors, recipe, [torch.Generator()] * 2)
    tensors = [getattr(batch, f.name) for f in fields(batch)]
    for tensor in (*tensors, batch.hidden_rows, batch.positions):
        assert tensor.device.type == "meta"


def test_a_prefix_may_ask_what_the_target_gave_each_token(source):
    """`Reanchored` gets a sequence's own blocks, probabilities where a token stands, 1 past it."""
    asked = []

    @dataclass(frozen=True)
    class Asking(VisiblePrefix):
        def draw(self, blocks, block_size, rng, emitted=None):
            asked.append(emitted())
            return torch.ones(blocks, dtype=torch.long)

    anchors = [torch.tensor([3, 4]), torch.tensor([5, source.index.length(6) - 2])]
    rngs = [torch.Generator(), torch.Generator()]
    cut_blocks(source, [5, 6], anchors, BlockRecipe(6, 96, Asking()), rngs)
    draft_ids = source.index.draft_ids
    for rows, probs, chosen in zip(source.read([5, 6]), asked, anchors, strict=True):
        for block, anchor in enumerate(chosen.tolist()):
            for slot in range(6):
                if anchor + slot >= len(rows.tokens):
                    assert probs[block, slot] == 1
                    continue
                token = int(rows.tokens[anchor + slot])
                named = [draft_ids[i] for i in rows.soft_ids[anchor + slot - 1].tolist()]
                said = rows.soft_probs[anchor + slot - 1].tolist()
                assert probs[block, slot] == (said[named.index(token)] if token in named else 0)
