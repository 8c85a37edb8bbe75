"""The target's KV rows: the only file that knows how transformers lays out its caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

FIRST_CAPACITY = 1024
"""Rows that a cache has room for at first."""
FIRST_CAPACITY_ON_CPU = 4096
"""There memory is taken when it is written, so room costs nothing; what growing frees does: the C
library keeps it."""


def first_capacity(device: torch.device) -> int:
    """Rows to make room for, before it is known how many will come."""
    return FIRST_CAPACITY_ON_CPU if device.type == "cpu" else FIRST_CAPACITY


def grown(buffer: Tensor, rows: int, dim: int) -> Tensor:
    """`buffer` with room for `rows` along `dim`: itself, or a copy of twice its size or more."""
    capacity = buffer.shape[dim]
    if rows <= capacity:
        return buffer
    shape = list(buffer.shape)
    shape[dim] = max(rows, 2 * capacity)
    larger = buffer.new_empty(shape)
    larger.narrow(dim, 0, capacity).copy_(buffer)
    return larger


@dataclass(frozen=True)
class CacheLayout:
    """What the rows of a model's cache look like, known before its first pass."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, config: Any, dtype: torch.dtype, device: torch.device) -> CacheLayout:
        """That of a decoder's transformers config."""
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(config.num_hidden_layers, config.num_key_value_heads, dim, dtype, device)


class TreeCache(Cache):
    """Keys and values of one sequence, all layers in one buffer each, behind transformers' Cache.

    The first `length` rows are committed. A pass of n nodes writes the n rows after them and
    leaves `length` alone, so it can be repeated; `keep_path` then commits the accepted rows where
    they lie. No step copies committed rows; only growth does, and it doubles the capacity.
    """

    def __init__(self, num_layers: int, capacity: int = FIRST_CAPACITY) -> None:
        super().__init__(layers=[])
        self.length = 0
        self._num_layers = num_layers
        self._capacity = capacity
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    @property
    def buffers(self) -> tuple[Tensor, ...]:
        """Keys and values [layers, kv_heads, capacity, head_dim]; nothing before the first pass."""
        return tuple(buffer for buffer in (self._keys, self._values) if buffer is not None)

    def update(
        self,
        key_states: Float[Tensor, "1 heads nodes key_dim"],
        value_states: Float[Tensor, "1 heads nodes value_dim"],
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[Float[Tensor, "1 heads rows key_dim"], Float[Tensor, "1 heads rows value_dim"]]:
        """Write one layer's rows after the committed ones; views of all rows up to there."""
        end = self.length + key_states.shape[2]
        self._keys = self._written(self._keys, key_states[0], layer_idx, end)
        self._values = self._written(self._values, value_states[0], layer_idx, end)
        return self._keys[layer_idx, None, :, :end], self._values[layer_idx, None, :, :end]

    def allocated(self, layout: CacheLayout, rows: int) -> tuple[Tensor, Tensor]:
        """Both buffers with room for `rows` in all, for a pass that writes its own rows."""
        if self._keys is None or self._values is None:
            shape = (layout.layers, layout.kv_heads, max(self._capacity, rows), layout.head_dim)
            # not zeros: they would be written
            self._keys = torch.empty(shape, dtype=layout.dtype, device=layout.device)
            self._values = torch.empty_like(self._keys)
        self._keys, self._values = grown(self._keys, rows, dim=2), grown(self._values, rows, dim=2)
        return self._keys, self._values

    def write(
        self,
        keys: Float[Tensor, "layers heads nodes key_dim"],
        values: Float[Tensor, "layers heads nodes value_dim"],
    ) -> None:
        """Put all layers' rows of a pass after the committed ones of the allocated buffers."""
        assert self._keys is not None
        assert self._values is not None
        end = self.length + keys.shape[2]
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values

    def _written(
        self,
        buffer: Tensor | None,
        rows: Float[Tensor, "heads nodes head_dim"],
        layer: int,
        end: int,
    ) -> Tensor:
        if buffer is None:
            heads, _, head_dim = rows.shape
            buffer = rows.new_empty(self._num_layers, heads, max(self._capacity, end), head_dim)
        buffer = grown(buffer, end, dim=2)
        assert rows.shape[0] == buffer.shape[1], "every layer has the same number of KV heads"
        buffer[layer, :, self.length : end] = rows
        return buffer

    def keep_path(self, path: Sequence[int]) -> None:
        """Commit the rows of a pass at the ascending nodes `path`, and forget the others."""
        moved = next((i for i, node in enumerate(path) if node != i), len(path))
        if moved < len(path):
            for buffer in self.buffers:
                nodes = torch.tensor(path[moved:], device=buffer.device)
                target = slice(self.length + moved, self.length + len(path))
                buffer[:, :, target] = buffer.index_select(2, self.length + nodes)
        self.length += len(path)

    def copied(self) -> tuple[Tensor, ...]:
        """Copies of the committed rows of both buffers; nothing before the first pass."""
        return tuple(buffer[:, :, : self.length].clone() for buffer in self.buffers)

    def refill(self, copies: Sequence[Tensor], length: int) -> None:
        """Take the first `length` rows of what `copied` gave as all that is committed."""
        assert len(copies) == len(self.buffers), "rows come back into a cache that has been used"
        keys, values = (grown(buffer, length, dim=2) for buffer in self.buffers)
        for buffer, copy in zip((keys, values), copies, strict=True):
            buffer[:, :, :length] = copy[:, :, :length]
        self._keys, self._values, self.length = keys, values, length

    def truncate(self, length: int) -> None:
        """Forget all committed rows from `length` on."""
        assert 0 <= length <= self.length, "truncate only shortens"
        self.length = length

    def __len__(self) -> int:
        return self._num_layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0


def foreign_layers(config: object) -> tuple[str, ...]:
    """The kinds of layer in a model whose memory is more than plain keys and values, by name.

    TreeCache can stand in for the model's own cache only when there are none. `config` is the
    transformers config of the decoder.
    """
    try:
        layers = DynamicCache(config=config).layers
    except KeyError as error:  # a layer type that this transformers has no cache for
        return (str(error.args[0]),)
    kinds = {_kind(layer) for layer in layers if type(layer) is not DynamicLayer}
    return tuple(sorted(kinds))


def _kind(layer: object) -> str:
    name = type(layer).__name__
    if "Linear" in name:
        return "linear-attention"
    return "sliding-window" if getattr(layer, "is_sliding", False) else name
