"""Which number type this machine computes faster in: measured, because flags do not say."""

from __future__ import annotations

import statistics
import time
from functools import cache

import torch
from torch import Tensor

ENOUGH = 1.2
"""bfloat16 is taken on a CPU where it is this many times as fast: it rounds, so it must pay."""

ROWS, WIDTHS, WEIGHTS = 16, (576, 1536), 4
SECONDS, FEWEST_ROUNDS = 0.03, 3


def faster_dtype() -> torch.dtype:
    """bfloat16 on a CPU that computes it faster, float32 on any other."""
    return torch.bfloat16 if _gain() >= ENOUGH else torch.float32


def why_faster() -> str:
    """The measurement behind `faster_dtype`, in one line."""
    if faster_dtype() == torch.bfloat16:
        return f"bfloat16: {_gain():.1f} times as fast as float32 here"
    return f"float32: bfloat16 is {_gain():.1f} times as fast here, and {ENOUGH} is asked for"


def _gain() -> float:
    return bfloat16_gain(torch.get_num_threads())


@cache
def bfloat16_gain(threads: int) -> float:
    """How many times as fast as in float32 the CPU multiplies in bfloat16, with `threads`.

    The products are those of a small pass: 16 rows by a few weights that no near cache holds.
    Medians of rounds that take turns, some 50 ms in all. A process measures once and keeps to it.
    """
    sweeps = [_Sweep(torch.float32), _Sweep(torch.bfloat16)]
    for sweep in sweeps:
        sweep.seconds()  # the first products set up kernels and threads
    rounds: list[list[float]] = []
    while len(rounds) < FEWEST_ROUNDS or sum(map(sum, rounds)) < SECONDS:
        rounds.append([sweep.seconds() for sweep in sweeps])
    float32, bfloat16 = (statistics.median(times) for times in zip(*rounds, strict=True))
    return float32 / bfloat16


class _Sweep:
    """A product of 16 rows with each of some weights, in one number type."""

    def __init__(self, dtype: torch.dtype) -> None:
        width, height = WIDTHS
        self._rows = torch.ones(ROWS, width, dtype=dtype)
        self._weights = [torch.ones(height, width, dtype=dtype) for _ in range(WEIGHTS)]

    def seconds(self) -> float:
        start = time.perf_counter()
        for weight in self._weights:
            self._product(weight)
        return time.perf_counter() - start

    @torch.inference_mode()
    def _product(self, weight: Tensor) -> Tensor:
        return torch.nn.functional.linear(self._rows, weight)
