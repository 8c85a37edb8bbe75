"""The network against a slow reference of its own definition."""

import pytest
import torch

from drafters import random_network


def read(network, features):
    return network.read(features[None], torch.arange(len(features))[None])


def run(network, embeds, context, start, hidden_rows=None):
    rows, slots, _ = embeds.shape
    positions = (start + torch.arange(slots)).expand(1, rows, slots)
    return network(embeds[None], positions, context, hidden_rows)[0]


def reference_attention(layer, x, rows, start, visible):
    """One block at a time, every head apart, keys repeated: nothing shared with the network."""
    attention, dim = layer.self_attn, layer.self_attn.head_dim
    x = layer.input_layernorm(x)
    keys_in = torch.cat([rows, x])
    slots = len(x)

    def heads(projection, values):
        return projection(values).unflatten(-1, (-1, dim)).transpose(0, 1)

    def rotate(values, positions):
        freq = 1e4 ** (-torch.arange(0, dim, 2) / dim)
        angle = positions[:, None] * torch.cat([freq, freq])
        half = torch.cat([-values[..., dim // 2 :], values[..., : dim // 2]], -1)
        return values * angle.cos() + half * angle.sin()

    positions = torch.arange(len(keys_in)) + start - len(rows)
    query = rotate(attention.q_norm(heads(attention.q_proj, x)), positions[-slots:])
    keys = rotate(attention.k_norm(heads(attention.k_proj, keys_in)), positions)
    values = heads(attention.v_proj, keys_in)
    out = []
    for head in range(len(query)):
        kv = head // (len(query) // len(keys))
        scores = query[head] @ keys[kv].T / dim**0.5
        scores = scores.masked_fill(~visible, -torch.inf)
        out.append(scores.softmax(-1) @ values[kv])
    return attention.o_proj(torch.stack(out, 1).flatten(1))


def reference(network, features, embeds, visible=None):
    """The whole network for one block after `features`."""
    rows = network.hidden_norm(network.fc(features.flatten(1)))
    start, slots = len(features), len(embeds)
    x = embeds
    for index, layer in enumerate(network.layers):
        seen = torch.ones(slots, start + slots, dtype=torch.bool)
        seen = seen if visible is None else visible[index]
        x = x + reference_attention(layer, x, rows, start, seen)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return network.norm(x)


def test_blocks_share_the_context_and_see_only_themselves():
    network = random_network()
    features, embeds = torch.randn(7, 2, 32), torch.randn(3, 5, 32)
    out = run(network, embeds, read(network, features), start=7)
    for row in range(3):
        torch.testing.assert_close(
            out[row], reference(network, features, embeds[row]), rtol=1e-4, atol=1e-4
        )


def test_context_rows_hidden_from_a_block_do_not_count():
    network = random_network()
    features, embeds = torch.randn(9, 2, 32), torch.randn(2, 5, 32)
    anchors = torch.tensor([[3, 6]])
    positions = anchors[..., None] + torch.arange(5)
    hidden = torch.arange(9) >= anchors[..., None]
    out = network(embeds[None], positions, read(network, features), hidden)[0]
    for row, anchor in enumerate((3, 6)):
        wanted = reference(network, features[:anchor], embeds[row])
        torch.testing.assert_close(out[row], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "causal", "window"),
    [
        ({}, False, None),
        (
            {
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 4,
                "use_sliding_window": True,
            },
            True,
            4,
        ),
        ({"is_causal": True}, True, None),
        (
            {
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 4,
                "use_sliding_window": True,
                "is_causal": False,
            },
            False,
            4,
        ),
    ],
)
def test_sliding_layers_are_causal_unless_the_config_says_otherwise(changes, causal, window):
    network = random_network(**changes)
    features, embeds = torch.randn(6, 2, 32), torch.randn(1, 5, 32)
    query, key = torch.arange(6, 11)[:, None], torch.arange(11)[None]
    full = torch.ones(5, 11, dtype=torch.bool)
    first = full & (key <= query) if causal else full
    if window is not None:
        first = first & ((query - key).abs() < window)
    always = "is_causal" in changes and changes["is_causal"]
    second = full & (key <= query) if always else full
    out = run(network, embeds, read(network, features), start=6)
    wanted = reference(network, features, embeds[0], [first, second])
    torch.testing.assert_close(out[0], wanted, rtol=1e-4, atol=1e-4)


def test_far_positions_turn_alike_in_bfloat16():
    network = random_network()
    positions = torch.tensor([[3, 500, 7000]])
    exact = network.rotation(positions).cos
    assert network.bfloat16().rotation(positions).cos.equal(exact)
    assert network.fc.weight.dtype == torch.bfloat16
