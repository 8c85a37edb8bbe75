"""Cross-entropy of slots against the target, with the softmax never held for all slots at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Partition = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

CHUNK = 1024
"""Slots whose logits exist at one time: 8 192 draft tokens in bfloat16 make 16 MB."""


def soft_cross_entropy(
    hidden: Float[Tensor, "slots hidden"],
    head: Float[Tensor, "draft_vocab hidden"],
    label_ids: Int[Tensor, "slots labels"],
    label_probs: Float[Tensor, "slots labels"],
    weights: Float[Tensor, " slots"],
    partition: Partition | None = None,
) -> Float[Tensor, ""]:
    """Σ_s w_s · Σ_j p_sj · (−log q_s(id_sj)) / Σ_s w_s, q the softmax over the draft vocabulary.

    `label_probs` need not sum to 1: a slot whose labels hold less mass counts for less. The head
    is frozen, so the gradient goes to `hidden` alone and is computed with the forward pass.
    `partition` may be a compiled `log_partition`.
    """
    return _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        partition or log_partition, hidden, head, label_ids, label_probs, weights
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, partition: Partition, hidden: Tensor, head: Tensor, *labels: Tensor
    ) -> Tensor:
        label_ids, label_probs, weights = labels
        grad = torch.empty_like(hidden)
        loss = hidden.new_zeros((), dtype=torch.float32)
        scaled = weights / weights.sum()
        for start in range(0, len(hidden), CHUNK):
            rows = slice(start, start + CHUNK)
            part, logits_grad = _chunk(
                partition, hidden[rows] @ head.T, label_ids[rows], label_probs[rows], scaled[rows]
            )
            loss += part
            grad[rows] = logits_grad @ head
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return None, grad * grad_loss[0].to(grad.dtype), None, None, None, None


def _chunk(
    partition: Partition,
    logits: Tensor,
    label_ids: Tensor,
    label_probs: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Weighted loss of some slots, and its gradient by their logits in the logits' dtype."""
    size, probs = partition(logits, weights[:, None] * label_probs.sum(-1, keepdim=True))
    chosen = logits.gather(1, label_ids).float()
    loss = (weights[:, None] * label_probs * (size - chosen)).sum()
    probs.scatter_add_(1, label_ids, -(weights[:, None] * label_probs).to(probs.dtype))
    return loss, probs


def log_partition(logits: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp(logits) of each row, and the softmax times `mass`; elementwise work only."""
    logits32 = logits.float()
    top = logits32.amax(-1, keepdim=True)
    exps = (logits32 - top).exp()
    total = exps.sum(-1, keepdim=True)
    return top + total.log(), (exps * (mass / total)).to(logits.dtype)
