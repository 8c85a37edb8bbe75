"""Attention of a tree's nodes over a long context, in two levels: cascade attention.

All nodes see the whole context, so that part needs no mask and its keys are read once for all of
them, where they lie. Only the nodes' own rows need one. Each level's result comes with the
logarithm of its softmax denominator, and two such results merge exactly: the idea of FlashInfer's
cascade and of the D²SD paper's verification. The numbers are those of `masks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from d2sd.attention import attention_with_lse, merge

CASCADE_FROM = 1 << 17
"""Nodes times committed rows from which a CPU is faster with two levels than with one masked call.

Two calls and a merge cost a fixed time more, reading the mask a time that grows with its entries.
`docs/results/attention.py` measures both; with 48 nodes this is a context of 2 731 rows.
"""

WORD = 64
"""Nodes whose visibility fits in one integer."""


@dataclass(frozen=True)
class TreeRows:
    """What the nodes of one pass may see, prepared once for all its layers.

    `mask` is the nodes' own part of the additive mask: `tree_mask` of no committed rows, or
    `branch_mask`. `group` is the number of query heads that share a KV head.
    """

    mask: Float[Tensor, "1 1 nodes nodes"]
    committed: int
    group: int

    @cached_property
    def dense(self) -> Float[Tensor, "1 1 rows columns"]:
        """The mask of one call over all columns: committed rows, then the nodes' own."""
        nodes = self.mask.shape[-1]
        dense = self.mask.new_zeros(1, 1, self.group, nodes, self.committed + nodes)
        dense[..., self.committed :] = self.mask.unsqueeze(2)
        return dense.view(1, 1, self.group * nodes, -1)

    @cached_property
    def words(self) -> Int[Tensor, "nodes words"]:
        """Bit j of a node's words is set where it sees node j."""
        visible = (self.mask[0, 0] == 0).to(torch.int64)
        padded = torch.nn.functional.pad(visible, (0, -len(visible) % WORD))
        places = torch.arange(WORD, device=visible.device)
        return (padded.view(len(visible), -1, WORD) << places).sum(-1)

    @cached_property
    def length(self) -> Int[Tensor, ""]:
        """`committed` where a kernel can read it."""
        return torch.tensor(self.committed, dtype=torch.int32, device=self.mask.device)


def branch_mask(
    lengths: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Float[Tensor, "1 1 rows rows"]:
    """The own mask of branches written one after another, prefixes not merged: the paper's rows.

    Every branch begins with the anchor and is causal within itself. A `TokenTree` with the same
    branches gives the same numbers with fewer rows.
    """
    branch = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    row = torch.arange(len(branch))
    hidden = (branch[:, None] != branch) | (row[:, None] < row)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
    return mask.masked_fill_(hidden.to(device), torch.finfo(dtype).min)[None, None]


def tree_attention(
    query: Float[Tensor, "1 heads nodes head_dim"],
    keys: Float[Tensor, "1 kv_heads columns head_dim"],
    values: Float[Tensor, "1 kv_heads columns value_dim"],
    rows: TreeRows,
    scale: float,
) -> Float[Tensor, "1 heads nodes value_dim"]:
    """Attention of one pass's nodes over the committed rows and their own, which come after them.

    `keys` and `values` may be views of a larger buffer; they are read where they lie. The way is
    chosen by device and size: Triton on a GPU that has it, else one masked call or two levels.
    """
    committed = rows.committed
    context = keys[:, :, :committed], values[:, :, :committed]
    own = keys[:, :, committed:], values[:, :, committed:]
    if query.device.type == "cuda" and query.dtype != torch.float64 and triton_is_here():
        from d2sd.target import cascade_triton as gpu

        seen = gpu.Seen(rows.length, rows.words)
        return gpu.cascade(query, gpu.Level(*context), gpu.Level(*own), seen, scale)
    if committed * query.shape[2] < CASCADE_FROM:
        return one_level(query, keys, values, rows, scale)
    return two_level(query, *context, *own, rows.mask, scale)


@cache
def triton_is_here() -> bool:
    """Whether Triton can be imported: torch for CUDA brings it on Linux, torch for CPU does not."""
    return find_spec("triton") is not None


def one_level(
    query: Float[Tensor, "1 heads nodes head_dim"],
    keys: Float[Tensor, "1 kv_heads columns head_dim"],
    values: Float[Tensor, "1 kv_heads columns value_dim"],
    rows: TreeRows,
    scale: float,
) -> Float[Tensor, "1 heads nodes value_dim"]:
    """The same in one call with the whole mask, grouped heads as rows instead of repeated keys."""
    rows_of_heads = folded(query, keys)
    attended = scaled_dot_product_attention(
        rows_of_heads, keys, values, attn_mask=rows.dense, scale=scale
    )
    return unfolded(attended, query.shape[1])


def two_level(  # noqa: PLR0913 - keys and values, of two levels
    query: Float[Tensor, "1 heads nodes head_dim"],
    context_keys: Float[Tensor, "1 kv_heads context head_dim"],
    context_values: Float[Tensor, "1 kv_heads context value_dim"],
    own_keys: Float[Tensor, "1 kv_heads nodes head_dim"],
    own_values: Float[Tensor, "1 kv_heads nodes value_dim"],
    mask: Float[Tensor, "1 1 nodes nodes"],
    scale: float,
) -> Float[Tensor, "1 heads nodes value_dim"]:
    """Attention of nodes over a context they all see and over each other as `mask` says.

    The context has at least one row. No size is looked at here, so one exported program serves
    every number of nodes and every context length from 1 on.
    """
    rows = folded(query, own_keys)
    heads, kv_heads = query.shape[1], own_keys.shape[1]
    own_mask = mask.repeat(1, 1, heads // kv_heads, 1)
    context = attention_with_lse(rows, context_keys, context_values, None, scale)
    own = attention_with_lse(rows, own_keys, own_values, own_mask, scale)
    return unfolded(merge(context, own), heads)


def folded(
    query: Float[Tensor, "1 heads nodes head_dim"],
    keys: Float[Tensor, "1 kv_heads columns head_dim"],
) -> Float[Tensor, "1 kv_heads rows head_dim"]:
    """The query heads that share a KV head as rows of one: the group outside, the node inside."""
    group = query.shape[1] // keys.shape[1]
    # not contiguous(): its check would tie an exported program to some numbers of nodes
    own = query.clone(memory_format=torch.contiguous_format)
    return own.view(1, keys.shape[1], group * query.shape[2], query.shape[3])


def unfolded(
    rows: Float[Tensor, "1 kv_heads rows value_dim"], heads: int
) -> Float[Tensor, "1 heads nodes value_dim"]:
    """One row per head and node again; a node's heads lie together, as a model reads them next."""
    _, kv_heads, count, width = rows.shape
    group = heads // kv_heads
    split = torch.unflatten(rows, 2, (group, count // group)).permute(0, 3, 1, 2, 4)
    together = split.clone(memory_format=torch.contiguous_format)
    return together.view(1, count // group, heads, width).transpose(1, 2)
