"""Figures of a suite from the raw log. Nothing in a bench's results comes from elsewhere."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from jaxtyping import Float, Int
from torch import Tensor

from d2sd.bench.records import Answer
from d2sd.bench.reliability import Reliability, honesty
from d2sd.bench.results import Bin, Calibration, Interval, Position, Row, Section
from d2sd.bench.trials import BASELINE, Trial
from d2sd.stages import split

RESAMPLES = 2000
Turns = tuple[Answer, ...]


@dataclass(frozen=True)
class Sums:
    """One contender's prompts, an entry each: what ratios are made of, and bootstrapped over."""

    emitted: Float[Tensor, " prompts"]
    steps: Float[Tensor, " prompts"]
    seconds: Float[Tensor, " prompts"]

    @classmethod
    def of(cls, prompts: Sequence[Turns]) -> Sums:
        def column(of: Callable[[Answer], float]) -> Tensor:
            return torch.tensor([sum(map(of, turns)) for turns in prompts], dtype=torch.float64)

        return cls(
            column(lambda answer: answer.decoded),
            column(lambda answer: len(answer.steps)),
            column(lambda answer: answer.seconds),
        )

    def drawn(self, places: Int[Tensor, "draws prompts"]) -> Sums:
        """The sums over prompts drawn anew, an entry for each draw."""
        return Sums(*(c[places].sum(-1) for c in (self.emitted, self.steps, self.seconds)))

    def whole(self) -> Sums:
        """The sums over all prompts."""
        return self.drawn(torch.arange(len(self.steps))[None])

    @property
    def length(self) -> Float[Tensor, " draws"]:
        return self.emitted / self.steps

    @property
    def speed(self) -> Float[Tensor, " draws"]:
        return self.emitted / self.seconds


def sections(trials: Iterable[Trial]) -> tuple[Section, ...]:
    """A section for every suite and temperature, in the order of the log."""
    apart: dict[tuple[str, float], list[Trial]] = {}
    for trial in trials:
        apart.setdefault((trial.suite, trial.temperature), []).append(trial)
    return tuple(
        Section(suite, temperature, len(of), _rows(suite, of))
        for (suite, temperature), of in apart.items()
    )


def calibrations(trials: Iterable[Trial]) -> tuple[Calibration, ...]:
    """How honest the judge's confidences were, each temperature apart."""
    apart: dict[float, list[Trial]] = {}
    for trial in trials:
        apart.setdefault(trial.temperature, []).append(trial)
    found = []
    for temperature, of in apart.items():
        honest = honesty(row for trial in of for row in trial.judged)
        named = {"first pass": honest.first, "second pass": honest.second}
        for name, judged in {**named, "boundary": honest.posterior}.items():
            if judged is not None:
                found.append(_calibration(temperature, name, judged))
    return tuple(found)


def _calibration(temperature: float, of: str, judged: Reliability) -> Calibration:
    bins = tuple(Bin(one.said, one.held, one.count) for one in judged.bins)
    return Calibration(temperature, of, judged.error, judged.chance, bins)


def _rows(suite: str, trials: Sequence[Trial]) -> dict[str, Row]:
    answers = {name: [trial.answers[name] for trial in trials] for name in present(trials)}
    baseline = answers.get(BASELINE)
    return {name: row(suite, prompts, baseline) for name, prompts in answers.items()}


def present(trials: Sequence[Trial]) -> list[str]:
    """Who answered every prompt."""
    return [name for name in trials[0].answers if all(name in t.answers for t in trials)]


def row(suite: str, prompts: Sequence[Turns], baseline: Sequence[Turns] | None) -> Row:
    """A contender's row from its answers, prompt by prompt, and those of plain decoding."""
    everything = [answer for turns in prompts for answer in turns]
    sums, places = Sums.of(prompts), resamples(suite, len(prompts))
    whole, drawn = sums.whole(), sums.drawn(places)
    lengths = torch.tensor([a.decoded / max(len(a.steps), 1) for a in everything]).double()
    speeds = [_speed(turns) for turns in prompts]
    stages, overhead = _stages(everything)
    return Row(
        turns=len(everything),
        new_tokens=sum(answer.new_tokens for answer in everything),
        steps=int(whole.steps),
        acceptance_length=interval_of(whole.length, drawn.length),
        acceptance_length_by_answer=interval_of(
            lengths.mean()[None], lengths[resamples(suite, len(lengths))].mean(-1)
        ),
        nodes_per_step=sum(sum(a.steps.nodes) for a in everything) / max(int(whole.steps), 1),
        tokens_per_second=float(whole.speed),
        tokens_per_second_with_prefill=_speed_with_prefill(everything),
        median_tokens_per_second=median(speeds),
        quartiles=_quartiles(speeds),
        speedup=None if baseline is None else _speedup(sums, Sums.of(baseline), places),
        speedup_with_prefill=None
        if baseline is None
        else _speed_with_prefill(everything)
        / _speed_with_prefill([answer for turns in baseline for answer in turns]),
        identical=None if baseline is None else _identical(prompts, baseline),
        histogram=_histogram(everything),
        positions=_positions(everything),
        sources=dict(sum((Counter(a.sources) for a in everything), Counter[str]())),
        stages_ms=stages,
        overhead=overhead,
    )


def resamples(suite: str, count: int) -> Int[Tensor, "draws prompts"]:
    """Prompts drawn anew: the same for all contenders of a suite, others for other suites."""
    rng = torch.Generator().manual_seed(zlib.crc32(suite.encode()))
    return torch.randint(count, (RESAMPLES, count), generator=rng)


def interval_of(value: Float[Tensor, " one"], drawn: Float[Tensor, " draws"]) -> Interval:
    """A figure, and the middle 95 % of what it is when prompts are drawn anew."""
    low, high = drawn.nanquantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return Interval(value.item(), low, high)


def _speedup(ours: Sums, plain: Sums, places: Int[Tensor, "draws prompts"]) -> Interval:
    here = ours.whole().speed / plain.whole().speed
    return interval_of(here, ours.drawn(places).speed / plain.drawn(places).speed)


def _speed(turns: Turns) -> float:
    return sum(a.decoded for a in turns) / (sum(a.seconds for a in turns) or float("inf"))


def _speed_with_prefill(answers: Sequence[Answer]) -> float:
    seconds = sum(answer.seconds + answer.prefill_seconds for answer in answers)
    return sum(answer.new_tokens for answer in answers) / seconds


def _quartiles(speeds: Sequence[float]) -> tuple[float, float]:
    if len(speeds) == 1:
        return speeds[0], speeds[0]
    first, _, third = quantiles(speeds, n=4, method="inclusive")
    return first, third


def _identical(ours: Sequence[Turns], plain: Sequence[Turns]) -> int:
    pairs = [pair for turns in zip(ours, plain, strict=True) for pair in zip(*turns, strict=True)]
    return sum(a.token_ids == b.token_ids for a, b in pairs)


def _histogram(answers: Iterable[Answer]) -> tuple[int, ...]:
    counts = Counter(emitted for answer in answers for emitted in answer.steps.emitted)
    return tuple(counts[n] for n in range(max(counts, default=0) + 1))


def _positions(answers: Iterable[Answer]) -> tuple[Position, ...]:
    """Acceptance by position, as deep as any draft went."""
    pairs = [pair for a in answers for pair in zip(a.steps.accepted, a.steps.depth, strict=True)]
    found = []
    for position in range(1, max((depth for _, depth in pairs), default=0) + 1):
        reached = [acc for acc, depth in pairs if acc >= position - 1 and depth >= position]
        found.append(Position(position, len(reached), sum(acc >= position for acc in reached)))
    return tuple(found)


def _stages(answers: Sequence[Answer]) -> tuple[dict[str, float], float | None]:
    """Milliseconds of a step by its parts, and the share outside the passes; nothing if untold."""
    seconds: Counter[str] = Counter()
    for answer in answers:
        seconds.update(answer.stages)
    if not seconds:
        return {}, None
    total, steps = sum(a.seconds for a in answers), sum(len(a.steps) for a in answers)
    parts = split(seconds, total, steps)
    return {name: parts.milliseconds(name) for name in parts.seconds}, parts.overhead
