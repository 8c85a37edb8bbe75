"""Attention whose results can be merged: each comes with the weight it had in all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


class Attended(NamedTuple):
    """What rows get from some keys: the weighted values, and how much weight there was.

    `lse` is the natural logarithm of each row's softmax denominator (log-sum-exp of its scores), in
    fp32 or better.
    """

    output: Float[Tensor, "batch kv_heads rows value_dim"]
    lse: Float[Tensor, "batch kv_heads rows"]


def attention_with_lse(
    query: Float[Tensor, "batch kv_heads rows head_dim"],
    keys: Float[Tensor, "batch kv_heads columns head_dim"],
    values: Float[Tensor, "batch kv_heads columns value_dim"],
    mask: Float[Tensor, "#batch 1 rows columns"] | None,
    scale: float,
) -> Attended:
    """Plain attention with its log-sum-exp, by the fastest kernel torch has for the device.

    `mask` is additive and of the query's dtype; without one every row sees every column. There
    must be at least one column. On a GPU only unmasked half-precision attention has such a kernel
    in torch; the rest is `reference_attention` there.
    """
    same_width = query.shape[-1] == values.shape[-1]
    if query.device.type == "cpu" and same_width:
        on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return Attended(*on_cpu(query, keys, values, 0.0, False, attn_mask=mask, scale=scale))
    if query.device.type == "cuda" and same_width and mask is None and query.dtype in HALF:
        on_cuda = torch.ops.aten._scaled_dot_product_flash_attention
        return Attended(*on_cuda(query, keys, values, scale=scale)[:2])
    return reference_attention(query, keys, values, mask, scale)


def reference_attention(
    query: Float[Tensor, "batch kv_heads rows head_dim"],
    keys: Float[Tensor, "batch kv_heads columns head_dim"],
    values: Float[Tensor, "batch kv_heads columns value_dim"],
    mask: Float[Tensor, "#batch 1 rows columns"] | None,
    scale: float,
) -> Attended:
    """The same by the definition, on any device and in any dtype; scores are in fp32 or better."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = query.to(wide) @ keys.to(wide).transpose(-1, -2) * scale
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp()
    return Attended((weights @ values.to(wide)).to(query.dtype), lse)


def merge(first: Attended, second: Attended) -> Float[Tensor, "batch kv_heads rows value_dim"]:
    """Attention over the columns of both, from each level's own, mixed in fp32 or better."""
    share = torch.sigmoid(second.lse - first.lse).unsqueeze(-1)
    wide = share.dtype
    mixed = torch.lerp(first.output.to(wide), second.output.to(wide), share)
    return mixed.to(first.output.dtype)
