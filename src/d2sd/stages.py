"""Named timings of a step's stages, kept outside the algorithm."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Stage = Callable[[str], AbstractContextManager[None]]


def untimed(name: str) -> AbstractContextManager[None]:
    """The default stage: measures nothing and costs nothing."""
    return nullcontext()


class Stages:
    """Adds up the seconds spent in each named stage; `Stages(device)` is passed to `decode`.

    On a GPU each stage ends with a synchronisation, so that time is charged where it belongs;
    that slows decoding a little, which is why it happens only when stages are asked for.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._cuda = torch.device(device).type == "cuda"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._cuda:
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - start
