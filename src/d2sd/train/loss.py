"""What each slot loses against the target, with the softmax never held for all slots at once.

One chunked pass over the frozen head keeps, per slot, three things: log Σ exp(logits), the
picked logits of the labels, and the mean head row under the softmax, which is the gradient of
the first by the hidden state. Every loss below is a small formula of the first two, left to
autograd; its backward is then one product with the mean rows and one weighted sum of picked
rows, however many losses are combined and whatever weights an objective gives the slots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

Partition = Callable[[Tensor], tuple[Tensor, Tensor]]

CHUNK = 1024
GPU_CHUNK = 8192
"""Slots whose logits exist at one time: 8 192 draft tokens in bfloat16 make 16 or 128 MB."""

ROWS = 64
"""A chunk is filled up to a multiple of these: few shapes of products.

On a CPU torch keeps a plan for each shape, here with a copy of the head in it: 20 MB a shape, and
the slots of a step are never equally many.
"""

TAIL_FLOOR = 0.01
"""Added to the drafter's mass outside the labels before its logarithm is taken.

Bounds the gradient where the drafter leaves that mass empty. There it is a difference of sums that
bfloat16 keeps to three digits, and the target's own tail is known no better.
"""


@dataclass(frozen=True)
class SlotLabels:
    """What the target says of each slot, in ids of the draft vocabulary.

    `probs` are its most probable tokens, renormalised over the draft vocabulary, so 1 less their
    sum is the tail: the mass of draft tokens outside `ids`. `ids` of a slot are distinct. `right`
    is the token it emitted, -1 when that is outside the draft vocabulary.
    """

    ids: Int[Tensor, "slots labels"]
    probs: Float[Tensor, "slots labels"]
    right: Int[Tensor, " slots"]


@dataclass(frozen=True)
class SlotLosses:
    """Losses of each slot in float32, all differentiable; q is the drafter, p the target.

    With P = Σ_j p_j over the labels, t = 1 - P the target's tail and u = 1 - Σ_j q_j the
    drafter's, all tokens of the tail taken as one:
    - `cross_entropy` −Σ_j (p_j / P) log q_j: the labels alone; pulls u to 0
    - `forward_kl` Σ_j p_j log(p_j / q_j) + t log(t / (u + TAIL_FLOOR)): may be negative by less
      than TAIL_FLOOR; pulls u to t
    - `total_variation` ½ (Σ_j |p_j − q_j| + |t − u|)
    - `log_right` log q of the emitted token; 0 without gradient where it isn't `proposable`
    Over the whole draft vocabulary `forward_kl` and `total_variation` would be at least this
    large: merging tokens brings distributions closer (data processing inequality).
    """

    cross_entropy: Float[Tensor, " slots"]
    forward_kl: Float[Tensor, " slots"]
    total_variation: Float[Tensor, " slots"]
    log_right: Float[Tensor, " slots"]
    proposable: Bool[Tensor, " slots"]
    """Whether the draft vocabulary holds the emitted token."""


def slot_losses(
    hidden: Float[Tensor, "slots hidden"],
    head: Float[Tensor, "draft_vocab hidden"],
    labels: SlotLabels,
    partition: Partition | None = None,
) -> SlotLosses:
    """All losses of every slot from one pass over the head, which is frozen.

    Losses that no objective uses cost a few elementwise operations on [slots, labels].
    `partition` may be a compiled `log_partition`.
    """
    proposable = labels.right >= 0
    ids = torch.cat([labels.ids.long(), labels.right.long().clamp_min(0)[:, None]], -1)
    partition = partition or log_partition
    size, picked = _ReadHead.apply(partition, hidden, head, ids)  # type: ignore[no-untyped-call]
    log_q = picked - size[:, None]
    log_labels, log_right = log_q[:, :-1], log_q[:, -1]
    # kept in few bits, the probabilities of a sure target may sum to a little over 1
    probs = labels.probs.float()
    probs = probs / probs.sum(-1, keepdim=True).clamp_min(1)
    held = probs.sum(-1)
    tail = (1 - held).clamp_min(0)
    drafted = log_labels.exp()
    drafted_tail = (1 - drafted.sum(-1)).clamp_min(0)
    taken = (probs * -log_labels).sum(-1)
    entropy = -(torch.xlogy(probs, probs).sum(-1) + torch.xlogy(tail, tail))
    return SlotLosses(
        cross_entropy=taken / held.clamp_min(torch.finfo(held.dtype).tiny),
        forward_kl=taken - tail * (drafted_tail + TAIL_FLOOR).log() - entropy,
        total_variation=((probs - drafted).abs().sum(-1) + (tail - drafted_tail).abs()) / 2,
        log_right=torch.where(proposable, log_right, 0.0),
        proposable=proposable,
    )


class _ReadHead(torch.autograd.Function):
    """log Σ exp(logits) of each slot and its logits at `ids`, both in float32."""

    @staticmethod
    def forward(
        ctx: Any, partition: Partition, hidden: Tensor, head: Tensor, ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean_rows = torch.empty_like(hidden)
        size = hidden.new_empty(len(hidden), dtype=torch.float32)
        picked = hidden.new_empty(ids.shape, dtype=torch.float32)
        chunk = CHUNK if hidden.device.type == "cpu" else GPU_CHUNK
        for start in range(0, len(hidden), chunk):
            rows = slice(start, min(start + chunk, len(hidden)))
            count = rows.stop - start
            logits = pad(hidden[rows], (0, 0, 0, -count % ROWS)) @ head.T
            sizes, probs = partition(logits)
            size[rows] = sizes[:count]
            picked[rows] = logits[:count].gather(1, ids[rows]).float()
            if ctx.needs_input_grad[1]:
                mean_rows[rows] = (probs @ head)[:count]
        ctx.save_for_backward(mean_rows, head, ids)
        return size, picked

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mean_rows, head, ids = ctx.saved_tensors
        by_size, by_picked = grads
        # an order of magnitude faster than scattering into the gradient of the logits
        rows = embedding_bag(ids, head, per_sample_weights=by_picked.to(head.dtype), mode="sum")
        grad = by_size[:, None] * mean_rows + rows
        return None, grad.to(mean_rows.dtype), None, None


def log_partition(
    logits: Float[Tensor, "slots draft_vocab"],
) -> tuple[Float[Tensor, " slots"], Float[Tensor, "slots draft_vocab"]]:
    """log Σ exp(logits) of each slot in float32, and the softmax in the logits' dtype."""
    logits32 = logits.float()
    top = logits32.amax(-1, keepdim=True)
    exps = (logits32 - top).exp()
    total = exps.sum(-1, keepdim=True)
    return (top + total.log()).squeeze(-1), (exps / total).to(logits.dtype)
