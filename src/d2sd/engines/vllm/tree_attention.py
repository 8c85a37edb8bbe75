"""Trees in vLLM's attention layers: its own kernel for plain rows, ours for the nodes of trees."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from d2sd.engines.batches.placement import PlacedTree
from d2sd.engines.vllm.attention import ContextBlocks, current, tree_attention
from d2sd.engines.vllm.cache_layout import fault, unpacked

UNFIT = {
    "attention sinks": ("sinks", (None,)),
    "ALiBi": ("alibi_slopes", (None,)),
    "a soft cap": ("logits_soft_cap", (None, 0, 0.0)),
    "a sliding window": ("sliding_window", (None, -1, (-1, -1))),
    "an 8-bit cache": ("kv_cache_dtype", (None, "auto", "float16", "bfloat16", "float32")),
    "a cache shared with another layer": ("kv_sharing_target_layer_name", (None,)),
}
"""What trees can't be scored with: the attribute of vLLM's layer, and its values without it."""


class TreeRows:
    """Put before the implementation of one of vLLM's attention backends.

    Rows of forked trees see their context and their ancestors; all others are vLLM's own. The
    context is gathered from the cache's blocks; `layout` says how a layer packs them.
    """

    scale: float

    def layout(self, layer: Any) -> str:
        raise NotImplementedError

    def forward(  # noqa: PLR0913  (vLLM calls it so)
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        plain = (layer, query, key, value, kv_cache, attn_metadata, output, *args)
        now = current()
        stock: Any = super()
        if attn_metadata is None or now is None:
            stock.forward(*plain, **kwargs)
            return output
        if now.mixed:
            stock.forward(*plain, **kwargs)
        now.remember(self, layer, key, value, (kv_cache, attn_metadata.slot_mapping))
        heads_per_key = query.shape[1] // key.shape[1]
        for number, placed in enumerate(now.placement.trees):
            if not placed.forked:
                continue
            rows = placed.rows
            own = ContextBlocks(key[rows].transpose(0, 1)[None], value[rows].transpose(0, 1)[None])
            table = attn_metadata.block_table[number]
            mask = now.mask(placed, heads_per_key, query)
            context = context_blocks(kv_cache, table, placed, self.layout(layer))
            out = tree_attention(query[rows], own, context, mask, self.scale)
            output[rows] = out.reshape(output[rows].shape)
        return output


def context_blocks(
    kv_cache: Tensor, table: Tensor, placed: PlacedTree, layout: str
) -> ContextBlocks:
    """A request's committed keys and values out of the cache's blocks."""
    used = table[: -(-placed.committed // kv_cache.shape[2])].long()
    keys, values = unpacked(kv_cache, used, layout)
    return ContextBlocks(keys[:, :, : placed.committed], values[:, :, : placed.committed])


def unfit(impl: Any, layer: Any) -> str | None:
    """Why trees can't be scored by this layer; None where they can."""
    if not isinstance(impl, TreeRows):
        return f"its attention is {type(impl).__name__}, which d2sd doesn't know"
    for name, (attribute, plain) in UNFIT.items():
        found = getattr(impl, attribute, None)
        if isinstance(found, Tensor) or found not in plain:
            return f"it has {name}"

    def write(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        impl.do_kv_cache_update(layer, keys, values, cache, slots)  # type: ignore[attr-defined]

    reason = fault(layer.kv_cache, impl.layout(layer), write)
    return reason and f"it has {reason}"
