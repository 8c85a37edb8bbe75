"""The course of one stage: steps, measuring, checkpoints, until its schedule ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from math import isnan
from pathlib import Path

from d2sd.drafters.network import RotaryNetwork
from d2sd.train.best import BestWeights
from d2sd.train.evaluate import Acceptance
from d2sd.train.log import TrainingLog
from d2sd.train.loop import StepReport, Trainer

CHECKPOINT_SECONDS = 180.0


class OutOfTimeError(Exception):
    """The time given to a training is over; its checkpoint is written."""


@dataclass(frozen=True)
class Since:
    """What happened since the last line of the log."""

    steps: int = 0
    loss: float = 0.0
    """Summed over the steps."""
    seconds: float = 0.0

    def __add__(self, other: Since) -> Since:
        return Since(self.steps + other.steps, self.loss + other.loss, self.seconds + other.seconds)


@dataclass(frozen=True)
class Intervals:
    """How often a stage is measured and saved, in steps; None: by the clock."""

    evaluate: int
    checkpoint: int | None


@dataclass(frozen=True)
class Place:
    """Where a stage keeps what it makes. Only the first of several processes writes."""

    name: str
    folder: Path
    log: TrainingLog
    writes: bool


class Course:
    """Trains one stage in `place`; `measure` gives the held-out acceptance of weights, or None."""

    def __init__(
        self,
        trainer: Trainer,
        measure: Callable[[RotaryNetwork], Acceptance | None],
        intervals: Intervals,
        place: Place,
    ) -> None:
        self.best = BestWeights(place.folder)
        self._trainer, self._measure = trainer, measure
        self._intervals, self._place = intervals, place
        self._since = Since()
        self._latest: float | None = None
        self._saved = time.perf_counter()

    def run(
        self, hear: Callable[[StepReport, float | None], None], until: float = float("inf")
    ) -> None:
        """Go on from the last checkpoint to the end; `hear` gets the latest acceptance, too.

        At `until` on `time.perf_counter` it saves and raises OutOfTimeError, after one step at
        the least.
        """
        self._resume()
        begun_at = self._trainer.step
        while not self._trainer.finished:
            start = time.perf_counter()
            if start >= until and self._trainer.step > begun_at:
                self._stop()
            report = self._trainer.advance()
            self._since += Since(1, report.loss, time.perf_counter() - start)
            if self._place.writes:
                self._keep(report)
            hear(report, self._latest)

    def _resume(self) -> None:
        facts = self._trainer.resume(self._place.folder)
        steps, wanted = self._trainer.step, self._trainer.schedule.steps
        if steps > wanted:
            raise ValueError(
                f"{self._place.folder} has made {steps} steps already, more than the {wanted} that "
                f"{self._place.name}.steps asks for; give at least {steps}, or another work folder"
            )
        if facts is not None:
            self._since = _since(facts)
            self._latest = float(facts["acceptance"]) if "acceptance" in facts else None
        if self._place.writes:
            self._place.log.forget(self._place.name, after=steps)

    def _keep(self, report: StepReport) -> None:
        """Measure and save where it is time to. Last the checkpoint: it says all before is done."""
        if report.step % self._intervals.evaluate == 0 or self._trainer.finished:
            self._evaluate(report)
        if self._checkpoint_is_due(report.step):
            self._trainer.save(self._place.folder, self._facts())
            self._saved = time.perf_counter()

    def _checkpoint_is_due(self, step: int) -> bool:
        if self._trainer.finished:
            return True
        if self._intervals.checkpoint is not None:
            return step % self._intervals.checkpoint == 0
        return time.perf_counter() - self._saved >= CHECKPOINT_SECONDS

    def _stop(self) -> None:
        if self._place.writes:
            self._trainer.save(self._place.folder, self._facts())
        raise OutOfTimeError(
            f"stage {self._place.name} stands at step {self._trainer.step} of "
            f"{self._trainer.schedule.steps}"
        )

    def _evaluate(self, report: StepReport) -> None:
        found = self._measure(self._trainer.measured)
        if found is not None:
            self._latest = found.block if found.dual is None else found.dual
        # where nothing is held out, the latest weights count as the best
        worth = float(report.step) if self._latest is None else self._latest
        self.best.offer(self._trainer.measured, worth, report.step)
        self._place.log.append({**_line(self._place.name, report, self._since), **_found(found)})
        self._since = Since()

    def _facts(self) -> dict[str, str]:
        known = {} if self._latest is None else {"acceptance": repr(self._latest)}
        return known | {f"since.{k}": repr(v) for k, v in asdict(self._since).items()}


def _since(facts: Mapping[str, str]) -> Since:
    return Since(
        int(facts["since.steps"]), float(facts["since.loss"]), float(facts["since.seconds"])
    )


def _line(stage: str, report: StepReport, since: Since) -> dict[str, object]:
    """One line of the learning curve; `seconds` and `loss` since the last, measuring left out."""
    return {
        "stage": stage,
        "step": report.step,
        "positions": report.positions,
        "tokens": report.tokens,
        "seconds": round(since.seconds, 1),
        "loss": round(since.loss / max(since.steps, 1), 5),
        "rate": report.rate,
    }


def _found(found: Acceptance | None) -> dict[str, object]:
    """What was measured; `per_slot` ends before the first slot that no draft has reached."""
    if found is None:
        return {}
    reached = takewhile(lambda rate: not isnan(rate), found.per_slot)
    return {**asdict(found), "per_slot": list(reached)}
