"""What replayed answers say of policies: acceptance lengths, depths, trees, honesty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from d2sd.bench.reliability import Honesty, honesty
from d2sd.bench.replay import Replayed, ReplayedStep
from d2sd.train.responses import Response

ALL = "all"
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean, and where 95 % of it lie when answers are drawn anew from these (bootstrap)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Depth:
    """Of `reached` steps whose tokens before `depth` were accepted, so many had this one as well.

    Steps are left out where the answer has no token at this depth any more.
    """

    depth: int
    reached: int
    accepted: int


@dataclass(frozen=True)
class SourceShare:
    """The part of one source in the drafted nodes, and in the accepted ones."""

    nodes: float
    accepted: float


@dataclass(frozen=True)
class Figures:
    """One policy on some answers.

    `acceptance_length` weighs every token alike, `per_answer` every answer. `histogram[n]` steps
    emitted n tokens.
    """

    acceptance_length: Interval
    per_answer: Interval
    tokens: int
    steps: int
    histogram: tuple[int, ...]
    depths: tuple[Depth, ...]
    nodes_per_step: float
    depth_per_step: float
    sources: Mapping[str, SourceShare]


@dataclass(frozen=True)
class Group:
    """All policies on the answers of one kind at one decoding temperature.

    The group of all kinds also has their honesty and the mean acceptance length over kinds.
    """

    kind: str
    temperature: float
    answers: int
    tokens: int
    policies: Mapping[str, Figures]
    honesty: Mapping[str, Honesty] | None = None
    mean_over_kinds: Mapping[str, float] | None = None


def groups(
    responses: Sequence[Response], replays: Mapping[str, Sequence[Replayed]]
) -> tuple[Group, ...]:
    """Every decoding temperature apart: all its answers first, then kind by kind.

    `replays[policy][i]` is of `responses[i]`.
    """
    found: list[Group] = []
    for temperature in sorted({response.temperature for response in responses}):
        places = [i for i, r in enumerate(responses) if r.temperature == temperature]
        kinds = [
            _group(kind, temperature, [i for i in places if responses[i].kind == kind], replays)
            for kind in sorted({responses[i].kind for i in places})
        ]
        found += [_of_all(kinds, temperature, places, replays), *kinds]
    return tuple(found)


def _of_all(
    kinds: Sequence[Group],
    temperature: float,
    places: Sequence[int],
    replays: Mapping[str, Sequence[Replayed]],
) -> Group:
    whole = _group(ALL, temperature, places, replays)
    return Group(
        whole.kind,
        whole.temperature,
        whole.answers,
        whole.tokens,
        whole.policies,
        honesty={
            policy: honesty(row for i in places for step in of[i].steps for row in step.rows)
            for policy, of in replays.items()
        },
        mean_over_kinds={
            policy: fmean(kind.policies[policy].acceptance_length.mean for kind in kinds)
            for policy in replays
        },
    )


def _group(
    kind: str,
    temperature: float,
    places: Sequence[int],
    replays: Mapping[str, Sequence[Replayed]],
) -> Group:
    policies = {policy: figures([of[i] for i in places]) for policy, of in replays.items()}
    tokens = max((row.tokens for row in policies.values()), default=0)
    return Group(kind, temperature, len(places), tokens, policies)


def figures(replays: Sequence[Replayed]) -> Figures:
    """One policy's figures on some answers, at least one."""
    steps = [step for replayed in replays for step in replayed.steps]
    histogram = Counter(step.emitted for step in steps)
    return Figures(
        acceptance_length=length_over_tokens(replays),
        per_answer=length_over_answers(replays),
        tokens=sum(step.emitted for step in steps),
        steps=len(steps),
        histogram=tuple(histogram[n] for n in range(max(histogram) + 1)),
        depths=depths(steps),
        nodes_per_step=fmean(sum(step.nodes.values()) for step in steps),
        depth_per_step=fmean(step.depth for step in steps),
        sources=sources(steps),
    )


def length_over_tokens(replays: Sequence[Replayed]) -> Interval:
    """All tokens by all steps."""
    tokens = torch.tensor([replayed.tokens for replayed in replays], dtype=torch.float64)
    steps = torch.tensor([len(replayed.steps) for replayed in replays], dtype=torch.float64)
    drawn = _resamples(len(replays))
    means = tokens[drawn].sum(-1) / steps[drawn].sum(-1)
    return _interval(float(tokens.sum() / steps.sum()), means)


def length_over_answers(replays: Sequence[Replayed]) -> Interval:
    """The mean of every answer's own acceptance length."""
    lengths = torch.tensor([r.tokens / len(r.steps) for r in replays], dtype=torch.float64)
    return _interval(float(lengths.mean()), lengths[_resamples(len(replays))].mean(-1))


def depths(steps: Iterable[ReplayedStep]) -> tuple[Depth, ...]:
    """Acceptance by depth, as deep as any tree went."""
    steps = list(steps)
    found = []
    for depth in range(1, max((step.depth for step in steps), default=0) + 1):
        reached = [s for s in steps if len(s.accepted) >= depth - 1 and s.known >= depth]
        found.append(Depth(depth, len(reached), sum(len(s.accepted) >= depth for s in reached)))
    return tuple(found)


def sources(steps: Iterable[ReplayedStep]) -> dict[str, SourceShare]:
    """Shares by who drafted a node first; `second+1` stands for rows that keep an alternative."""
    nodes: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for step in steps:
        for source, count in step.nodes.items():
            nodes[_plain(source)] += count
        accepted.update(map(_plain, step.accepted))
    return {
        source: SourceShare(
            nodes[source] / nodes.total(), accepted[source] / max(accepted.total(), 1)
        )
        for source in sorted(nodes)
    }


def _plain(source: str) -> str:
    """The source without how much it kept."""
    name, _, kept = source.partition("@")
    return f"{name}+1" if kept.endswith("+1") else name


def _resamples(answers: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(answers, (RESAMPLES, answers), generator=rng)


def _interval(mean: float, means: torch.Tensor) -> Interval:
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(mean, low, high)
