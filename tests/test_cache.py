"""TreeCache: rows stay where they lie, an accepted path is compacted in place."""

from __future__ import annotations

import pytest
import torch
from transformers import JambaConfig, LlamaConfig, MistralConfig

from d2sd.target.cache import TreeCache, foreign_layers, grown

LAYERS, HEADS, KEY_DIM, VALUE_DIM = 2, 3, 4, 5


def rows_for(labels, dim):
    """Rows whose every number is their label, one per head."""
    return torch.tensor(labels, dtype=torch.float32)[None, None, :, None].expand(1, HEADS, -1, dim)


def write(cache, labels):
    """One pass over all layers; layer l stores label + 1000 l. Gives the last layer's views."""
    for layer in range(LAYERS):
        shifted = [label + 1000 * layer for label in labels]
        views = cache.update(rows_for(shifted, KEY_DIM), rows_for(shifted, VALUE_DIM), layer)
    return views


def committed(cache, layer=0):
    """Labels of the committed rows, after checking that all heads, keys and values agree."""
    keys, values = (buffer[layer, :, : cache.length] for buffer in cache.buffers)
    assert (keys == keys[:1, :, :1]).all()
    assert (values == keys[:1, :, :1]).all()
    return (keys[0, :, 0] - 1000 * layer).int().tolist()


def filled(labels, capacity=64):
    cache = TreeCache(LAYERS, capacity)
    write(cache, labels)
    cache.keep_path(range(len(labels)))
    return cache


def test_a_pass_sees_committed_rows_then_its_own():
    cache = filled([1, 2, 3])
    keys, values = write(cache, [7, 8])
    assert keys.shape == (1, HEADS, 5, KEY_DIM)
    assert values.shape == (1, HEADS, 5, VALUE_DIM)
    assert keys[0, 0, :, 0].tolist() == [1001, 1002, 1003, 1007, 1008]


def test_a_pass_commits_nothing_and_can_be_repeated():
    cache = filled([1, 2, 3])
    write(cache, [7, 8])
    write(cache, [9])
    assert cache.length == cache.get_seq_length() == 3
    cache.keep_path([0])
    assert committed(cache) == [1, 2, 3, 9]


@pytest.mark.parametrize("path", [(0,), (0, 1, 2), (0, 2, 5), (0, 1, 4, 5), (0, 3), ()])
def test_keep_path_keeps_the_path_in_every_layer(path):
    cache = filled([1, 2, 3])
    write(cache, [10, 11, 12, 13, 14, 15])
    cache.keep_path(path)
    for layer in range(LAYERS):
        assert committed(cache, layer) == [1, 2, 3] + [10 + node for node in path]


def test_keep_path_touches_only_the_rows_it_moves():
    cache = filled([1, 2, 3])
    write(cache, [10, 11, 12, 13])
    before = [buffer[:, :, :7].clone() for buffer in cache.buffers]  # the rest was never written
    versions = [buffer._version for buffer in cache.buffers]
    cache.keep_path((0, 1))
    assert [buffer._version for buffer in cache.buffers] == versions, "nothing had to move"
    cache.truncate(3)
    cache.keep_path((0, 2, 3))
    for buffer, old in zip(cache.buffers, before, strict=True):
        changed = (buffer[:, :, :7] != old).any(-1).any(1).any(0)
        assert changed.nonzero().flatten().tolist() == [4, 5]


def test_views_share_the_buffer_and_the_buffer_stays_between_steps():
    cache = filled([1, 2, 3])
    places = [buffer.data_ptr() for buffer in cache.buffers]
    for step in range(10):
        keys, _ = write(cache, [20 + step, 30, 40])
        assert keys.untyped_storage().data_ptr() == places[0]
        cache.keep_path((0, 2))
    assert [buffer.data_ptr() for buffer in cache.buffers] == places


def test_growth_keeps_every_row_and_doubles():
    cache = filled([1, 2, 3], capacity=4)
    write(cache, [4, 5])
    cache.keep_path((0, 1))
    assert committed(cache, layer=1) == [1, 2, 3, 4, 5]
    assert cache.buffers[0].shape[2] == 8
    write(cache, list(range(6, 40)))
    cache.keep_path(range(34))
    assert committed(cache) == list(range(1, 40))


def test_truncate_forgets_the_end():
    cache = filled([1, 2, 3])
    cache.truncate(1)
    write(cache, [9])
    cache.keep_path((0,))
    assert committed(cache) == [1, 9]
    with pytest.raises(AssertionError, match="shortens"):
        cache.truncate(5)


def test_layers_with_other_head_counts_are_caught():
    cache = filled([1])
    odd = torch.zeros(1, 1, 1, KEY_DIM)
    with pytest.raises(AssertionError, match="same number of KV heads"):
        cache.update(odd, odd, 1)


def test_grown_gives_the_same_buffer_while_there_is_room():
    buffer = torch.arange(6).reshape(2, 3)
    assert grown(buffer, 3, dim=1) is buffer
    larger = grown(buffer, 4, dim=1)
    assert larger.shape == (2, 6)
    assert torch.equal(larger[:, :3], buffer)


def test_foreign_layers_are_named():
    assert foreign_layers(LlamaConfig()) == ()
    assert foreign_layers(MistralConfig(sliding_window=None)) == ()
    assert foreign_layers(MistralConfig(sliding_window=64)) == ("sliding-window",)
    assert foreign_layers(JambaConfig()) == ("linear-attention",)
