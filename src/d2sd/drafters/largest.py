"""The largest columns of wide rows: exact, in one order for equal ones, fast on a CPU."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def largest(scores: Float[Tensor, "rows columns"], count: int) -> Int[Tensor, "rows best"]:
    """Columns of the `count` largest scores of every row (of all, if there are fewer), in order.

    Equal scores come by column, so the first n of more are the n largest, on every device.
    """
    columns = scores.shape[1]
    size = 32 if columns <= 2**14 else 64  # measured: smaller chunks have slow maxima
    if scores.device.type == "cpu" and count * size * 2 <= columns:
        return _by_chunks(scores, count, size)
    return _first_of(scores, torch.arange(columns, device=scores.device), count)


def _by_chunks(
    scores: Float[Tensor, "rows columns"], count: int, size: int
) -> Int[Tensor, "rows best"]:
    """Of chunks with `size` columns, only the `count` with the largest maxima can matter.

    Before whatever lies in another chunk come the maxima of those, one each.
    """
    chunks = scores.shape[1] // size
    maxima = scores[:, : chunks * size].reshape(-1, chunks, size).amax(-1)
    best = _first_of(maxima, torch.arange(chunks), count)
    inside = (best[..., None] * size + torch.arange(size)).flatten(1)
    if rest := scores.shape[1] - chunks * size:
        last = torch.arange(chunks * size, chunks * size + rest)
        inside = torch.cat([inside, last.expand(len(scores), -1)], 1)
    return _first_of(scores.gather(1, inside), inside, count)


def _first_of(
    scores: Float[Tensor, "rows some"], columns: Int[Tensor, "*rows some"], count: int
) -> Int[Tensor, "rows best"]:
    """Those of `columns` (below 2^31) with the largest scores, by column where they are equal."""
    count = min(count, scores.shape[1])
    if scores.dtype != torch.float32:
        columns, order = columns.expand(scores.shape).sort(-1)
        ranks = scores.gather(1, order).sort(stable=True, dim=-1, descending=True).indices
        return columns.gather(1, ranks[:, :count])
    # A float's bits rise with it when they are read as an integer; those of negative ones fall.
    bits = (scores + 0.0).view(torch.int32)  # -0.0 and 0.0 are equal
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (rising.long() << 31) - columns
    return -keys.topk(count).values & 0x7FFFFFFF
