"""Progress of long commands on standard error: a bar with the time left, or a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from d2sd.cli.terminal import note, notes

if TYPE_CHECKING:
    from d2sd.train.run import Moment

NOTE_EVERY = 60.0
"""Seconds between two lines where there is no terminal for a bar."""


class Meter:
    """Shows how far a job is; call it with what is done, how much there is, and words."""

    def __init__(self, bar: Progress, words: str, shown: bool) -> None:
        self._bar, self._words = bar, words
        self._notes = shown and not notes.is_terminal
        self._task = bar.add_task(words, total=None)
        self._begun: tuple[float, int] | None = None
        self._noted = time.monotonic()

    def __call__(self, done: int, total: int, words: str | None = None) -> None:
        now = time.monotonic()
        if self._begun is None:  # what an earlier run has done says nothing about speed
            self._begun = now, done
            self._bar.reset(self._task, total=total, completed=done)
        text = words or self._words
        self._bar.update(self._task, completed=done, total=total, description=text)
        if self._notes and now - self._noted >= NOTE_EVERY:
            self._noted = now
            note(f"{text}: {done} of {total}{self._left(now, done, total)}")

    def _left(self, now: float, done: int, total: int) -> str:
        assert self._begun is not None
        begun, already = self._begun
        if done == already:
            return ""
        seconds = (now - begun) / (done - already) * (total - done)
        return f", {timedelta(seconds=round(seconds))} left"


@contextmanager
def meter(words: str, shown: bool = True) -> Iterator[Meter]:
    """A bar while the block lasts; `shown` is False in all but the first of several processes."""
    columns = (
        TextColumn("[dim]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} of {task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, disable=not (shown and notes.is_terminal)) as bar:
        yield Meter(bar, words, shown)


@contextmanager
def training_meter(shown: bool) -> Iterator[Callable[[Moment], None]]:
    """The same for a training: all stages, the loss smoothed over some fifty steps."""
    smooth: dict[str, float] = {}

    with meter("training", shown) as move:

        def hear(moment: Moment) -> None:
            loss = smooth.get(moment.stage, moment.report.loss)
            smooth[moment.stage] = 0.98 * loss + 0.02 * moment.report.loss
            accepted = "" if moment.acceptance is None else f", accepted {moment.acceptance:.2f}"
            words = f"{moment.stage}: loss {smooth[moment.stage]:.3f}{accepted}"
            move(moment.done, moment.total, words)

        yield hear
