"""A pass's keys and values in two parts: the context where it lies, and the pass's own rows."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache


class SplitRows(NamedTuple):
    """Keys or values of a layer; the context is neither copied nor written."""

    context: Float[Tensor, "1 kv_heads capacity dim"]
    own: Float[Tensor, "1 kv_heads nodes dim"]


class SplitCache(Cache):
    """Stands in for the model's cache: shows whole buffers and keeps what the pass adds."""

    def __init__(
        self,
        keys: Float[Tensor, "layers kv_heads capacity dim"],
        values: Float[Tensor, "layers kv_heads capacity dim"],
    ) -> None:
        super().__init__(layers=[])
        self._keys, self._values = keys, values
        self.own_keys: list[Float[Tensor, "kv_heads nodes dim"]] = []
        self.own_values: list[Float[Tensor, "kv_heads nodes dim"]] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[SplitRows, SplitRows]:
        assert layer_idx == len(self.own_keys), "the layers of a pass come in their order"
        self.own_keys.append(key_states[0])
        self.own_values.append(value_states[0])
        keys, values = self._keys[layer_idx, None], self._values[layer_idx, None]
        return SplitRows(keys, key_states), SplitRows(values, value_states)

    def __len__(self) -> int:
        return len(self._keys)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._keys.shape[2]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._keys.shape[2] + query_length, 0
