"""Means over suites from the raw log, and contenders against each other on the same prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from d2sd.bench.figures import Sums, Turns, interval_of, present, resamples
from d2sd.bench.results import Against, Interval, Mean, Means
from d2sd.bench.trials import BASELINE, Trial

Suites = Mapping[str, Sequence[Turns]]


def means(trials: Iterable[Trial]) -> tuple[Means, ...]:
    """Means over suites for every temperature; contenders that missed a suite are left out."""
    apart: dict[float, dict[str, list[Trial]]] = {}
    for trial in trials:
        apart.setdefault(trial.temperature, {}).setdefault(trial.suite, []).append(trial)
    return tuple(_means(temperature, suites) for temperature, suites in apart.items())


def _means(temperature: float, suites: Mapping[str, Sequence[Trial]]) -> Means:
    asked = present([trial for of in suites.values() for trial in of])
    answers = {
        name: {suite: [trial.answers[name] for trial in of] for suite, of in suites.items()}
        for name in asked
    }
    baseline = answers.get(BASELINE)
    drawn = {name: _Drawn.of(prompts, baseline) for name, prompts in answers.items()}
    return Means(
        temperature,
        tuple(suites),
        min(len(of) for of in suites.values()),
        {name: _mean(answers[name], drawn[name]) for name in asked},
        {
            ours: {theirs: drawn[ours].against(drawn[theirs]) for theirs in asked if theirs != ours}
            for ours in asked
        },
    )


@dataclass(frozen=True)
class _Drawn:
    """A contender's means over suites: first as measured, then with prompts drawn anew.

    The draws are the same for all contenders, so that their ratios are of the same prompts.
    """

    length: Float[Tensor, " draws"]
    speedup: Float[Tensor, " draws"] | None

    @classmethod
    def of(cls, suites: Suites, baseline: Suites | None) -> _Drawn:
        ours = {suite: _as_measured_and_drawn(suite, prompts) for suite, prompts in suites.items()}
        length = torch.stack([sums.length for sums in ours.values()]).mean(0)
        if baseline is None:
            return cls(length, None)
        plain = {s: _as_measured_and_drawn(s, prompts) for s, prompts in baseline.items()}
        ratios = [ours[suite].speed / plain[suite].speed for suite in suites]
        return cls(length, torch.stack(ratios).mean(0))

    def against(self, other: _Drawn) -> Against:
        speed = None
        if self.speedup is not None and other.speedup is not None:
            speed = _interval(self.speedup / other.speedup)
        return Against(_interval(self.length / other.length), speed)


def _as_measured_and_drawn(suite: str, prompts: Sequence[Turns]) -> Sums:
    sums = Sums.of(prompts)
    whole, drawn = sums.whole(), sums.drawn(resamples(suite, len(prompts)))
    return Sums(
        torch.cat([whole.emitted, drawn.emitted]),
        torch.cat([whole.steps, drawn.steps]),
        torch.cat([whole.seconds, drawn.seconds]),
    )


def _mean(suites: Suites, drawn: _Drawn) -> Mean:
    nodes, speeds = [], []
    for prompts in suites.values():
        whole = Sums.of(prompts).whole()
        drafted = sum(sum(answer.steps.nodes) for turns in prompts for answer in turns)
        nodes.append(drafted / max(float(whole.steps), 1))
        speeds.append(float(whole.speed))
    return Mean(
        acceptance_length=_interval(drawn.length),
        nodes_per_step=fmean(nodes),
        tokens_per_second=fmean(speeds),
        speedup=None if drawn.speedup is None else _interval(drawn.speedup),
    )


def _interval(drawn: Float[Tensor, " draws"]) -> Interval:
    """The first entry is the figure as measured."""
    return interval_of(drawn[:1], drawn[1:])
