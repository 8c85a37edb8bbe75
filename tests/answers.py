"""Random responses for the tests of training."""

from __future__ import annotations

import torch

from d2sd.train.responses import Response


def random_responses(count: int, vocab: int = 90, seed: int = 0) -> list[Response]:
    """Responses of different lengths over the first `vocab` tokens, greedy and sampled in turn."""
    rng = torch.Generator().manual_seed(seed)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab, (length,), generator=rng).tolist())

    return [
        Response(tokens(2 + i % 5), tokens(3 + (7 * i) % 23), 0.8 * (i % 2)) for i in range(count)
    ]
