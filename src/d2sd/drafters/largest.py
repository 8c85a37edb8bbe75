"""The largest columns of wide rows, exact and fast on a CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Largest(NamedTuple):
    """Scores in falling order, and where they are."""

    scores: Float[Tensor, "rows best"]
    columns: Int[Tensor, "rows best"]


def largest(scores: Float[Tensor, "rows columns"], count: int) -> Largest:
    """The `count` largest scores of every row, or all if there are fewer.

    Which of equal scores are taken, and in which order they come, is not said.
    """
    columns = scores.shape[1]
    size = 32 if columns <= 2**14 else 64  # measured; maxima of smaller chunks are slow
    if scores.device.type != "cpu" or len(scores) < 4 or count * size * 2 > columns:
        return Largest(*scores.topk(min(count, columns), dim=-1))
    # In other chunks than the `count` with the largest maxima nothing is larger than those are.
    chunks = columns // size
    maxima = scores[:, : chunks * size].reshape(-1, chunks, size).amax(-1)
    chosen = maxima.topk(count, dim=-1).indices
    inside = (chosen[..., None] * size + torch.arange(size)).flatten(1)
    if rest := columns - chunks * size:
        last = torch.arange(columns - rest, columns)
        inside = torch.cat([inside, last.expand(len(scores), -1)], 1)
    best = scores.gather(1, inside).topk(count, dim=-1)
    return Largest(best.values, inside.gather(1, best.indices))
