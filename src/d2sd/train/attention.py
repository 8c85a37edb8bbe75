"""Block attention for training on a CPU: equal to `network.attend`, without its big softmax.

The context part goes through PyTorch's flash kernel, the block's own few keys through small
products; both are merged by log-sum-exp. The backward pass needs no merging: a softmax over a
union of key sets is, per set, the flash backward with the *union's* output and log-sum-exp.
"""

# no `from __future__ import annotations` here: torch.library reads the annotations themselves
from typing import Any

import torch
from torch import Tensor

from d2sd.drafters.network import DraftNetwork, KeyValues, attend

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_fast(query: Tensor, context: KeyValues, own: KeyValues, mask: Tensor | None) -> Tensor:
    """`network.attend`, with its shapes. The mask must not hide a block's own slots."""
    if query.device.type != "cpu" or mask is None:
        return attend(query, context, own, mask)
    out, _ = _block_attention(
        query, context.keys, context.values, own.keys, own.values, mask[..., : -query.shape[3]]
    )
    return out


def use_fast_attention(network: DraftNetwork) -> None:
    """Let every layer of `network` attend by `attend_fast`."""
    for layer in network.layers:
        layer.self_attn.attend = attend_fast


@torch.library.custom_op("d2sd::block_attention", mutates_args=())
def _block_attention(
    query: Tensor, keys: Tensor, values: Tensor, own_k: Tensor, own_v: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    s, kv, a, b, g, d = query.shape
    rows = query.reshape(s, kv, a * b * g, d)
    far, far_lse = _flash(
        rows, keys, values, 0.0, False, attn_mask=_row_mask(mask, query), scale=1.0
    )
    near = _near_scores(query, own_k)
    near_lse = near.logsumexp(-1)
    far_lse = far_lse.contiguous().view(near_lse.shape)
    lse = torch.logaddexp(far_lse, near_lse)
    out = (near - lse[..., None]).exp().to(query.dtype) @ own_v
    out += far.reshape(s, kv, a, b * g, d) * (far_lse - lse).exp().to(query.dtype)[..., None]
    return out.view(query.shape), lse


@_block_attention.register_fake
def _(
    query: Tensor, keys: Tensor, values: Tensor, own_k: Tensor, own_v: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    s, kv, a, b, g, _ = query.shape
    return query.new_empty(query.shape), query.new_empty(s, kv, a, b * g, dtype=torch.float32)


@torch.library.custom_op("d2sd::block_attention_backward", mutates_args=())
def _block_attention_backward(
    grad: Tensor, saved: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    query, keys, values, own_k, own_v, mask, out, lse = saved
    s, kv, a, b, g, d = query.shape
    grad = grad.contiguous()

    def rows(x: Tensor) -> Tensor:
        return x.reshape(s, kv, a * b * g, d)

    d_query, d_keys, d_values = _flash_backward(
        rows(grad), rows(query), keys, values, rows(out), lse.view(s, kv, a * b * g),
        0.0, False, attn_mask=_row_mask(mask, query), scale=1.0,
    )  # fmt: skip
    blocks = grad.view(s, kv, a, b * g, d)
    probs = (_near_scores(query, own_k) - lse[..., None]).exp()
    delta = (blocks * out.view_as(blocks)).float().sum(-1, keepdim=True)
    d_scores = (probs * ((blocks @ own_v.transpose(3, 4)).float() - delta)).to(query.dtype)
    d_query = d_query.reshape(blocks.shape) + d_scores @ own_k
    d_own_k = d_scores.transpose(3, 4) @ query.reshape(blocks.shape)
    d_own_v = probs.to(query.dtype).transpose(3, 4) @ blocks
    grads = (d_query.view(query.shape), d_keys, d_values, d_own_k, d_own_v)
    return tuple(grad.contiguous() for grad in grads)  # type: ignore[return-value]


@_block_attention_backward.register_fake
def _(grad: Tensor, saved: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor).contiguous() for tensor in saved[:5])


def _near_scores(query: Tensor, own_k: Tensor) -> Tensor:
    s, kv, a, b, g, d = query.shape
    return (query.reshape(s, kv, a, b * g, d) @ own_k.transpose(3, 4)).float()


def _row_mask(mask: Tensor, query: Tensor) -> Tensor:
    """[sequences, 1, blocks, slots or 1, 1, context] -> one row for each query row."""
    s, _, a, b, g, _ = query.shape
    return mask.expand(s, 1, a, b, g, -1).reshape(s, 1, a * b * g, -1).to(query.dtype)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*_block_attention_backward(grad, list(ctx.saved_tensors)), None)


_block_attention.register_autograd(_gradients, setup_context=_remember)
