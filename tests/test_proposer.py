"""The proposer: its context cache, its vocabulary, its calibration."""

import pytest
import torch

from d2sd.drafters.passes import ContextRows, DraftPass, EagerDraftPass
from d2sd.drafters.proposer import NetworkProposer, Proposal
from d2sd.interfaces import Context
from drafters import random_network

EMBED = torch.randn(97, 32, generator=torch.Generator().manual_seed(5))


def head(bias=False):
    linear = torch.nn.Linear(32, 97, bias=bias)
    torch.nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(6))
    return linear.requires_grad_(False)


def features_of(tokens):
    """Features that depend on the whole prefix, as a target's do."""
    table = torch.randn(97, 2, 32, generator=torch.Generator().manual_seed(7))
    return table[torch.tensor(tokens)].cumsum(0)


def context(*tokens):
    return Context(tokens, features_of(tokens[:-1]))


def proposer(network=None, taps=(0, 2)):
    return NetworkProposer(network or random_network(), EMBED, head(), taps)


def test_a_row_is_its_visible_tokens_then_masks_over_all_committed_features():
    network, ours = random_network(), proposer()
    here = context(3, 1, 4, 1, 5)
    probs = ours.propose(here, [(5,), (5, 9, 2)]).probs
    rows = torch.tensor([[5, 96, 96, 96, 96], [5, 9, 2, 96, 96]])
    kv = network.read(here.features[None], torch.arange(4)[None])
    hidden = network(EMBED[rows][None], (4 + torch.arange(5)).expand(1, 2, 5), kv)
    wanted = head()(hidden[0, :, 1:]).softmax(-1)
    wanted[1, :2] = 0  # the slots that row shows
    torch.testing.assert_close(probs, wanted)


@pytest.mark.parametrize(
    "history",
    [
        [(3, 1), (3, 1, 4), (3, 1, 4, 1, 5)],  # grows step by step
        [(3, 1, 4, 9, 9, 9), (3, 1, 4, 1, 5)],  # another answer after the same prompt
        [(8, 8, 8, 8, 8, 8, 8), (3, 1, 4, 1, 5)],  # another sequence
        [tuple(range(1, 90)) * 4, (3, 1, 4, 1, 5)],  # the buffers have grown
    ],
)
def test_what_was_read_before_never_shows(history):
    ours = proposer()
    for tokens in history:
        got = ours.propose(context(*tokens), [(tokens[-1],)]).probs
    fresh = proposer().propose(context(*history[-1]), [(history[-1][-1],)]).probs
    torch.testing.assert_close(got, fresh)


def test_temperatures_are_those_of_the_nearest_decoding_temperature():
    plain = proposer().propose(context(3, 1, 4), [(4,)]).probs
    inner = {"mask_token_id": 96, "target_layer_ids": [0, 2]}
    fitted = random_network(dflash_config={**inner, "temperatures": {"0": [0.5], "1.0": [2.0]}})
    for decoding, temperature in [(0.0, 0.5), (0.5, 0.5), (0.6, 2.0), (1.7, 2.0)]:
        ours = NetworkProposer(fitted, EMBED, head(), (0, 2), decoding)
        got = ours.propose(context(3, 1, 4), [(4,)]).probs
        torch.testing.assert_close(got, (plain.log() / temperature).softmax(-1))


@pytest.mark.parametrize("wrong", [[0.5, -1.0], {"greedy": [1.0]}, {"0": []}, "0.5, 1"])
def test_temperatures_that_cannot_be_are_refused(wrong):
    inner = {"mask_token_id": 96, "target_layer_ids": [0, 2], "temperatures": wrong}
    with pytest.raises(ValueError, match=r"has temperatures .*; they must be a list of positive"):
        random_network(dflash_config=inner)


def test_features_are_read_once():
    ours = proposer()
    seen = []
    read = ours.network.read
    ours.network.read = lambda features, rows: (
        seen.append(features.shape[1]) or read(features, rows)
    )
    for tokens in [(3, 1, 4), (3, 1, 4, 1, 5), (3, 1, 4, 1, 5)]:
        ours.propose(context(*tokens), [(tokens[-1],)])
    assert seen == [2, 2]


def test_taps_are_taken_from_the_targets_by_layer():
    wide = Context((3, 1, 4), torch.stack([features_of((3, 1))[:, i] for i in (1, 0, 0)], 1))
    got = proposer(taps=(2, 1, 0)).propose(wide, [(4,)]).probs
    torch.testing.assert_close(got, proposer().propose(context(3, 1, 4), [(4,)]).probs)
    with pytest.raises(ValueError, match=r"needs target layers \[2\]"):
        proposer(taps=(0, 1))


def test_a_reduced_vocabulary_speaks_in_target_ids():
    network = random_network(draft_vocab_size=3)
    network.draft_ids = torch.tensor([7, 50, 90])
    proposal = proposer(network).propose(context(3, 1, 4), [(4,)])
    whole = proposer().propose(context(3, 1, 4), [(4,)])
    narrowed = whole.probs[..., [7, 50, 90]]
    torch.testing.assert_close(proposal.probs, narrowed / narrowed.sum(-1, keepdim=True))
    best = proposal.greedy()
    assert best.tokens[0, 0, 0] == [7, 50, 90][int(narrowed[0, 0].argmax())]
    assert proposal.top(9).tokens.shape == (1, 4, 3)


def test_temperatures_go_by_distance_from_the_last_visible_token():
    plain = proposer().propose(context(3, 1, 4), [(4,), (4, 8)]).probs
    fitted = random_network(
        dflash_config={
            "mask_token_id": 96,
            "target_layer_ids": [0, 2],
            "temperatures": [0.5, 2.0, 1.0, 4.0],
        }
    )
    got = proposer(fitted).propose(context(3, 1, 4), [(4,), (4, 8)]).probs
    for row, slot, temperature in [(0, 0, 0.5), (0, 1, 2.0), (1, 1, 0.5), (1, 3, 1.0)]:
        wanted = (plain[row, slot].log() / temperature).softmax(-1)
        torch.testing.assert_close(got[row, slot], wanted)


def test_a_narrow_proposals_best_tokens_are_those_of_its_probabilities():
    network = random_network(draft_vocab_size=40)
    network.draft_ids = torch.randperm(97, generator=torch.Generator().manual_seed(3))[:40]
    proposal = proposer(network).propose(context(3, 1, 4), [(4,), (4, 8), (4, 8, 1, 7), (4, 9)])
    best = proposal.top(6)
    chances, ids = proposal.probs.sort(stable=True, dim=-1, descending=True)
    for row, kept in enumerate([0, 1, 3, 1]):
        torch.testing.assert_close(best.probs[row, kept:], chances[row, kept:, :6])
        assert best.tokens[row, kept:].tolist() == network.draft_ids[ids[row, kept:, :6]].tolist()
        alone = proposal.row(row)
        assert (alone.slots, alone.asked.kept) == (4 - kept, (0,))
        torch.testing.assert_close(alone.probs[0], proposal.probs[row, kept:])
        assert not best.probs[row, :kept].any()
    tokens, probs = proposal.ranks(3, 2, 6)
    assert tokens == best.tokens[3, 2].tolist()
    assert probs == pytest.approx(best.probs[3, 2].tolist())


def test_a_row_that_shows_all_its_slots_has_nothing_to_say():
    proposal = proposer().propose(context(3, 1, 4), [(4, 8, 1, 7, 6), (4,)])
    assert proposal.row(0).top(3).tokens.shape == (1, 0, 3)
    torch.testing.assert_close(
        proposal.row(1).probs, proposer().propose(context(3, 1, 4), [(4,)]).probs
    )


def test_given_probabilities_are_kept_as_they_are():
    probs = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(1)).double().softmax(-1)
    proposal = Proposal.from_probs(probs)
    assert torch.equal(proposal.probs, probs)
    assert torch.equal(proposal.top(4).probs, probs.sort(descending=True).values[..., :4])
    assert torch.equal(proposal.row(1).probs, probs[1:])


class Mirrored(DraftPass):
    """Another way to compute a pass: says the opposite, and notes what it was asked."""

    def __init__(self, inner: DraftPass) -> None:
        self.inner = inner
        self.asked = []
        self.read_sizes = set()

    def key_values(self, features, positions):
        self.read_sizes.add(len(features))
        return self.inner.key_values(features, positions)

    def __call__(self, ids, asked, divisors, context):
        self.asked.append((ids.tolist(), asked.tolist(), context.length))
        return -self.inner(ids, asked, divisors, context)


def test_a_pass_can_be_computed_by_another_object():
    network = random_network()
    mirrored = Mirrored(EagerDraftPass(network, EMBED, head()))
    ours = NetworkProposer(network, EMBED, head(), (0, 2), run=mirrored)
    got = ours.propose(context(3, 1, 4), [(4,), (4, 8)])
    plain = proposer(network).propose(context(3, 1, 4), [(4,), (4, 8)])
    torch.testing.assert_close(got.logits, -plain.logits)
    ids = [[4, 96, 96, 96, 96], [4, 8, 96, 96, 96]]
    assert mirrored.asked == [(ids, [1, 2, 3, 4, 7, 8, 9], 2)]


def test_readings_have_few_sizes_and_hold_what_single_rows_would_give():
    """torch keeps memory for every new size of a product, some 0.5 MB on a CPU with AMX."""
    network = random_network()
    noted = Mirrored(EagerDraftPass(network, EMBED, head()))
    features = torch.randn(1230, 2, 32, generator=torch.Generator().manual_seed(3))
    wanted = network.read(features[None], torch.arange(1230)[None])
    rows = ContextRows(network.config, torch.float32, torch.device("cpu"), 8)
    for count in (*range(1, 49), 54):
        noted.read(features[rows.length : rows.length + count], rows)
    assert rows.length == 1230
    for layer, whole in zip(rows.layers(), wanted, strict=True):
        torch.testing.assert_close(layer.keys, whole.keys)
        torch.testing.assert_close(layer.values, whole.values)
    assert noted.read_sizes == {2, 4, 8, 16, 32, 64}
    rows.truncate(0)
    noted.read(features, rows)  # a long prompt
    assert noted.read_sizes == {2, 4, 8, 16, 32, 64, 256, 512}
    torch.testing.assert_close(rows.layers()[1].keys, wanted[1].keys)
