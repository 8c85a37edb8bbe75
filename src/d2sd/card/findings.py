"""What `d2sd evaluate` found, read back from its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2sd.card.plots import Bars, Reliability

FEWEST_STEPS = 20
"""A depth that fewer steps reached is left out: its share would be chance."""


@dataclass(frozen=True)
class Length:
    """An acceptance length with its 95 % interval over answers."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Told:
    """How honest a policy's drafters were: confidences of both passes, and the posterior r(i).

    `said[i]` and `held[i]` are the expected and the measured share of blocks of which exactly i
    drafted tokens were right.
    """

    first: Reliability | None
    second: Reliability | None
    posterior: Reliability | None
    said: tuple[float, ...]
    held: tuple[float, ...]


@dataclass(frozen=True)
class PolicyFinding:
    """One policy at one decoding temperature: over all answers, and suite by suite."""

    all: Length
    suites: Mapping[str, Length]
    mean_over_suites: float
    depths: tuple[float, ...]
    nodes_per_step: float
    told: Told | None

    @property
    def bars(self) -> Bars:
        """For the plot of suites."""
        return Bars(
            {suite: length.mean for suite, length in self.suites.items()},
            {suite: (length.low, length.high) for suite, length in self.suites.items()},
        )


@dataclass(frozen=True)
class Finding:
    """All policies at one decoding temperature."""

    temperature: float
    answers: Mapping[str, int]
    tokens: int
    policies: Mapping[str, PolicyFinding]


@dataclass(frozen=True)
class Change:
    """What fitted temperatures changed for one policy, judged on answers they never saw."""

    temperature: float
    policy: str
    lengths: tuple[float, float]
    errors: tuple[float, float] | None


@dataclass(frozen=True)
class EvaluationFile:
    """One JSON of `d2sd evaluate`."""

    name: str
    responses: str | None
    run: Mapping[str, Any]
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]


def read_evaluation(path: Path) -> EvaluationFile:
    """A file of `d2sd evaluate --out`. Raises ValueError that names it when it is none."""
    try:
        values = json.loads(path.read_text())
        return EvaluationFile(
            name=path.name.removesuffix(".json"),
            responses=values.get("responses"),
            run=values["run"],
            findings=tuple(_findings(values["groups"])),
            changes=tuple(_changes(values.get("fit"))),
        )
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON of d2sd evaluate: {error!r}") from None


def _findings(groups: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """The group of all kinds has `mean_over_kinds`; those of the suites have not."""
    found = []
    for whole in groups:
        if whole.get("mean_over_kinds") is None:
            continue
        suites = [
            group
            for group in groups
            if group["temperature"] == whole["temperature"] and group is not whole
        ]
        found.append(
            Finding(
                temperature=float(whole["temperature"]),
                answers={_suite(group): group["answers"] for group in suites},
                tokens=whole["tokens"],
                policies={name: _policy(name, whole, suites) for name in whole["policies"]},
            )
        )
    return found


def _policy(
    name: str, whole: Mapping[str, Any], suites: Sequence[Mapping[str, Any]]
) -> PolicyFinding:
    figures = whole["policies"][name]
    told = (whole.get("honesty") or {}).get(name)
    return PolicyFinding(
        all=_length(figures),
        suites={_suite(group): _length(group["policies"][name]) for group in suites},
        mean_over_suites=float(whole["mean_over_kinds"][name]),
        depths=tuple(
            depth["accepted"] / depth["reached"] if depth["reached"] >= FEWEST_STEPS else math.nan
            for depth in figures["depths"]
        ),
        nodes_per_step=float(figures["nodes_per_step"]),
        told=_told(told) if told else None,
    )


def _suite(group: Mapping[str, Any]) -> str:
    return group["kind"] or "unnamed"


def _length(figures: Mapping[str, Any]) -> Length:
    found = figures["acceptance_length"]
    return Length(float(found["mean"]), float(found["low"]), float(found["high"]))


def _told(values: Mapping[str, Any]) -> Told:
    boundaries = values.get("boundaries") or ()
    return Told(
        first=_reliability(values.get("first")),
        second=_reliability(values.get("second")),
        posterior=_reliability(values.get("posterior")),
        said=tuple(float(boundary["said"]) for boundary in boundaries),
        held=tuple(float(boundary["held"]) for boundary in boundaries),
    )


def _reliability(values: Mapping[str, Any] | None) -> Reliability | None:
    if values is None:
        return None
    bins = values["bins"]
    return Reliability(
        said=tuple(float(each["said"]) for each in bins),
        held=tuple(float(each["held"]) for each in bins),
        counts=tuple(each["count"] for each in bins),
        error=float(values["error"]),
    )


def _changes(fit: Mapping[str, Any] | None) -> list[Change]:
    if not fit:
        return []
    return [
        _change(name, before, after)
        for before, after in zip(fit["before"], fit["after"], strict=True)
        for name in before["policies"]
    ]


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    errors = [
        float(group["honesty"][name]["first"]["error"])
        for group in (before, after)
        if ((group.get("honesty") or {}).get(name) or {}).get("first")
    ]
    return Change(
        temperature=float(before["temperature"]),
        policy=name,
        lengths=(_length(before["policies"][name]).mean, _length(after["policies"][name]).mean),
        errors=(errors[0], errors[1]) if len(errors) == 2 else None,
    )
