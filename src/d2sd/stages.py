"""Named timings of a step's stages, kept outside the algorithm."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

Stage = Callable[[str], AbstractContextManager[None]]


def untimed(name: str) -> AbstractContextManager[None]:
    """The default stage: measures nothing and costs nothing."""
    return nullcontext()


class Stages:
    """Adds up the seconds spent in each named stage; `Stages(device)` is passed to `decode`.

    On a GPU the marks stand in the device's own queue: time is charged to the stage whose work it
    was, and the host waits for nothing but the reading of `seconds`.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._unread: list[tuple[str, Any, Any]] = []
        self._now: Callable[[], Any] = time.perf_counter
        if torch.device(device).type == "cuda":
            self._now = lambda: _GpuMark(device)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._unread.append((name, start, self._now()))
            if len(self._unread) >= MOST_UNREAD:
                self._read()

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far. A stage inside another is counted in both."""
        self._read()
        return dict(self._seconds)

    def forget(self) -> None:
        """Begin anew, as after a warm-up."""
        self._unread.clear()
        self._seconds.clear()

    def _read(self) -> None:
        for name, start, end in self._unread:
            self._seconds[name] += end - start
        self._unread.clear()


MOST_UNREAD = 4096


class _GpuMark:
    """A moment of a GPU's queue; the difference of two is in seconds, once both have passed."""

    def __init__(self, device: torch.device | str) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def __sub__(self, earlier: _GpuMark) -> float:
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1000


PASSES = ("draft 1", "draft 2", "score")
"""The stages that run a network; all else of a step is overhead."""


@dataclass(frozen=True)
class Split:
    """Where the time of `steps` steps went: the parts sum to `total`, all in seconds.

    Drafting is told apart into the drafters' passes, "draft 1" and "draft 2", and "plan", the
    rest of it. "other" is what lies between the stages: text, stop rules, the loop itself.
    """

    steps: int
    total: float
    seconds: dict[str, float]

    @property
    def overhead(self) -> float:
        """The share of the total that is spent outside the passes, between 0 and 1."""
        return 1 - sum(self.seconds[name] for name in PASSES) / self.total

    def milliseconds(self, part: str | None = None) -> float:
        """What a step spends in a part, or on the whole."""
        return 1000 * (self.total if part is None else self.seconds[part]) / self.steps


def split(stages: Mapping[str, float], total: float, steps: int) -> Split:
    """The split of `total` seconds of decoding, from what `Stages` measured in them."""
    timed = defaultdict(float, stages)
    first, second = timed["draft 1"], timed["draft 2"]
    seconds = {
        "draft 1": first,
        "plan": timed["draft"] - first - second,
        "draft 2": second,
        **{name: timed[name] for name in ("score", "verify", "commit")},
    }
    seconds["other"] = total - sum(seconds.values())
    return Split(steps, total, seconds)
