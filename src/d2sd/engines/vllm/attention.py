"""Attention of tree nodes over the engine's paged cache: context and tree apart, then merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.attention import attention_with_lse, merge
from d2sd.engines.batches.placement import PlacedTree, Placement


@dataclass(frozen=True)
class WrittenRows:
    """A layer's keys and values of the rows of forked trees, and how to write them elsewhere."""

    impl: Any
    layer: Any
    keys: Float[Tensor, "rows kv_heads head_dim"]
    values: Float[Tensor, "rows kv_heads head_dim"]
    kv_cache: Tensor
    slots: Int[Tensor, " all_rows"]


class TreePass:
    """The pass that the engine runs now, as the attention layers see it."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.mixed = len(placement.forked) < len(placement.trees)
        rows = [row for p in placement.forked for row in range(p.rows.start, p.rows.stop)]
        self._rows = torch.tensor(rows, dtype=torch.long)
        self._place = {row: place for place, row in enumerate(rows)}
        self._written: dict[int, WrittenRows] = {}
        self._masks: dict[tuple[str, torch.dtype, int], Tensor] = {}

    def remember(self, impl: Any, layer: Any, keys: Tensor, values: Tensor, more: Any) -> None:
        """Keep what a layer wrote for the nodes, until the accepted ones are known."""
        rows = self._rows.to(keys.device)
        kv_cache, slots = more
        self._written[id(layer)] = WrittenRows(
            impl, layer, keys[rows], values[rows], kv_cache, slots
        )

    def compact(self) -> None:
        """Write the accepted paths into the slots of a plain continuation, by the engine's hand.

        Keys are rotated for context + depth already, which is where they stand now.
        """
        sources, goals = self.placement.moves()
        if not len(sources):
            return
        places = torch.tensor([self._place[row] for row in sources.tolist()])
        for written in self._written.values():
            at = places.to(written.keys.device)
            written.impl.do_kv_cache_update(
                written.layer,
                written.keys[at],
                written.values[at],
                written.kv_cache,
                written.slots[goals.to(written.slots.device)],
            )

    def mask(
        self, placed: PlacedTree, groups: int, like: Tensor
    ) -> Float[Tensor, "1 1 rows nodes"]:
        """Additive: a node sees its ancestors and itself, once for each query head of a group."""
        key = (placed.request, like.dtype, groups)
        if key not in self._masks:
            hidden = ~placed.tree.visibility().to(like.device)
            zero = torch.zeros((), dtype=like.dtype, device=like.device)
            mask = zero.masked_fill(hidden, torch.finfo(like.dtype).min)
            self._masks[key] = mask.repeat(groups, 1)[None, None]
        return self._masks[key]


_now: list[TreePass] = []


def begin(tree_pass: TreePass | None) -> None:
    """Let the attention layers of this process run this pass; None: as without trees."""
    _now[:] = [tree_pass] if tree_pass is not None else []


def current() -> TreePass | None:
    """The pass that was begun."""
    return _now[0] if _now else None


@dataclass(frozen=True)
class ContextBlocks:
    """Keys and values of a request's cache blocks, [1, kv_heads, tokens, head_dim] each."""

    keys: Tensor
    values: Tensor


def tree_attention(
    query: Float[Tensor, "nodes heads head_dim"],
    own: ContextBlocks,
    context: ContextBlocks,
    mask: Float[Tensor, "1 1 rows nodes"],
    scale: float,
) -> Float[Tensor, "nodes heads head_dim"]:
    """Every node over the whole context and over its own ancestors and itself.

    The query heads of one key head become rows, so that nothing of the context is copied.
    """
    nodes, heads, dim = query.shape
    kv_heads = own.keys.shape[1]
    folded = query.view(nodes, kv_heads, heads // kv_heads, dim).permute(1, 2, 0, 3)
    rows = folded.reshape(1, kv_heads, -1, dim)
    near = attention_with_lse(rows, own.keys, own.values, mask, scale)
    out = near.output
    if context.keys.shape[2]:
        far = attention_with_lse(rows, context.keys, context.values, None, scale)
        out = merge(far, near)
    return out.view(kv_heads, heads // kv_heads, nodes, dim).permute(2, 0, 1, 3).reshape_as(query)
