"""Learning curves: what a training wrote down, and what its next doubling should bring."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

TREND_DOUBLINGS = 2.0


@dataclass(frozen=True)
class Point:
    """A stage as it was measured after `positions` masked slots of training.

    `seconds` of training since the stage began, measuring left out. `loss` is the mean since the
    point before. `block` and `dual` are acceptance lengths on held-out answers; `per_slot[k]` is
    how often slot k + 1 is right, given that all before it are. `rate` is the learning rate or a
    share of it, `tokens` how many tokens of answers were read.
    """

    stage: str
    step: int
    positions: int
    seconds: float | None = None
    loss: float | None = None
    block: float | None = None
    dual: float | None = None
    per_slot: tuple[float, ...] = ()
    rate: float | None = None
    tokens: int | None = None

    @property
    def acceptance(self) -> float | None:
        """The acceptance length that the stage works for: of `dual` where it was measured."""
        return self.block if self.dual is None else self.dual


@dataclass(frozen=True)
class Training:
    """A whole training.jsonl: where it comes from, and each stage's points in their order."""

    provenance: Mapping[str, Any] | None
    stages: Mapping[str, tuple[Point, ...]]


@dataclass(frozen=True)
class Trend:
    """Acceptance = `at_one` + `per_doubling` · log2(positions), fitted on the last `points`.

    `error` is the standard error of `per_doubling`; `last` the positions of the last point.
    """

    at_one: float
    per_doubling: float
    error: float
    points: tuple[Point, ...]

    @property
    def last(self) -> int:
        return self.points[-1].positions

    def at(self, positions: int) -> float:
        """The fitted acceptance length."""
        return self.at_one + self.per_doubling * math.log2(positions)


def read_training(path: Path) -> Training:
    """A training.jsonl. Raises ValueError with file and line where one is no JSON object.

    Unfinished text at the end, which a killed run leaves, is no line.
    """
    starts: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    whole = path.read_text().rpartition("\n")[0]
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number} is no JSON object")
        (evaluations if {"stage", "step", "positions"} <= line.keys() else starts).append(line)
    names = dict.fromkeys(line["stage"] for line in evaluations)
    stages = {name: _points(name, evaluations) for name in names}
    return Training(_start(starts[0]) if starts else None, stages)


def fit_trend(points: Sequence[Point], doublings: float = TREND_DOUBLINGS) -> Trend | None:
    """Least squares over the points of the last `doublings`, or else the last three.

    None where fewer than three say acceptance.
    """
    known = [p for p in points if p.acceptance is not None and p.positions > 0]
    if len({p.positions for p in known}) < 3:
        return None
    recent = [p for p in known if p.positions >= known[-1].positions / 2**doublings]
    used = recent if len(recent) >= 3 else known[-3:]
    x = [math.log2(p.positions) for p in used]
    y = [p.acceptance or 0.0 for p in used]
    slope, start = linear_regression(x, y)
    spread = sum((each - fmean(x)) ** 2 for each in x)
    missed = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    error = math.sqrt(missed / (len(used) - 2) / spread)
    return Trend(start, slope, error, tuple(used))


def _start(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """The provenance in a start's line, which may be the line."""
    inner = line.get("started")
    return inner if isinstance(inner, dict) else line


def _points(stage: str, lines: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """One stage's points. A step measured twice, by a run that was resumed, counts as the last."""
    own = {line["step"]: line for line in lines if line["stage"] == stage}
    ordered = [own[step] for step in sorted(own)]
    spent = [line.get("seconds") for line in ordered]
    # seconds are since the line before; where the first are missing, so is their sum
    sums = list(accumulate(spent)) if None not in spent else [None] * len(spent)
    return tuple(
        Point(
            stage=stage,
            step=line["step"],
            positions=line["positions"],
            seconds=seconds,
            loss=line.get("loss"),
            block=line.get("block"),
            dual=line.get("dual"),
            per_slot=tuple(line.get("per_slot") or ()),
            rate=line.get("rate"),
            tokens=line.get("tokens"),
        )
        for line, seconds in zip(ordered, sums, strict=True)
    )
