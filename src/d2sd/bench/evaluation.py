"""Stored answers replayed with every policy, and temperatures fitted on what was seen.

A replay takes seconds and follows from the answer, the policy and the weights alone. So each one
is kept in a file as soon as it is done, under a fingerprint of all three, and a run that was
killed takes them from there.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch

from d2sd import __version__
from d2sd.bench.acceptance import Group, groups
from d2sd.bench.replay import JudgedRow, Replayed, ReplayedStep, recited, replay
from d2sd.drafters.network import DraftNetwork
from d2sd.drafters.policies import Policy
from d2sd.journal import Journal
from d2sd.networks import Networks
from d2sd.session import Session
from d2sd.train.calibrate import LossCurves, best_temperatures
from d2sd.train.responses import Response

SAMPLED = 1024
"""Values of each weight tensor that enter the fingerprint: training changes every tensor."""

Replays = dict[str, list[Replayed]]
"""Under each policy's text, one replay per answer."""

ByTemperature = dict[float, tuple[float, ...]]
"""Decoding temperature -> temperature by distance."""


@dataclass(frozen=True)
class Evaluation:
    """What is replayed. `curves` asks for what temperatures are fitted on."""

    responses: tuple[Response, ...]
    policies: tuple[Policy, ...]
    curves: bool = False

    @property
    def tokens(self) -> int:
        """Answer tokens to walk over, each policy counted."""
        return len(self.policies) * sum(len(r.response_ids) for r in self.responses)


@dataclass(frozen=True)
class Fit:
    """Temperatures fitted on all answers, and the honesty of those fitted on half of them.

    `after` replays each answer with temperatures that were fitted on the other half of the
    answers; `before` is with those it was called with. Both are groups of all kinds.
    """

    first: ByTemperature
    second: ByTemperature
    first_slots: dict[float, tuple[int, ...]]
    second_slots: dict[float, tuple[int, ...]]
    before: tuple[Group, ...]
    after: tuple[Group, ...]


class KeptReplays:
    """Replays that are done, in a journal; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._journal: Journal | None = None
        self._found: dict[str, Any] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(path)
            for part in self._journal if len(self._journal) else ():
                self._found.update(part)

    def get(self, key: str) -> Replayed | None:
        return _replayed(self._found[key]) if key in self._found else None

    def add(self, key: str, replayed: Replayed) -> None:
        if self._journal is not None:
            self._journal.append({key: _plain(replayed)})

    def remove(self) -> None:
        """For when the result is written."""
        if self._journal is not None:
            self._journal.path.unlink(missing_ok=True)


def replay_all(
    session: Session,
    evaluation: Evaluation,
    kept: KeptReplays,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> Replays:
    """Every answer with every policy; `on_tokens` hears how many more were walked over."""
    found: Replays = {policy.text: [] for policy in evaluation.policies}
    weights = fingerprint(session)
    for response in evaluation.responses:
        whole = None
        for policy in evaluation.policies:
            key = _hashed([weights, asdict(response), policy.text, evaluation.curves])
            replayed = kept.get(key)
            if replayed is None:
                whole = whole or recited(session, response)
                replayed = replay(session, response, whole, policy, evaluation.curves)
                kept.add(key, replayed)
            found[policy.text].append(replayed)
            on_tokens(len(response.response_ids))
    return found


def fit(
    session: Session,
    evaluation: Evaluation,
    replays: Replays,
    kept: KeptReplays,
    on_tokens: Callable[[int], object] = lambda tokens: None,
) -> Fit:
    """Temperatures for both passes at every decoding temperature, cross-checked on halves.

    `replays` must hold curves. Of each decoding temperature every other answer is one half.
    """
    whole = _curves(session.networks, evaluation.responses, replays)
    after: Replays = {name: [] for name in replays}
    halves = _halves(evaluation.responses)
    for number in range(2):
        others = [i for i, half in enumerate(halves) if half != number]
        seen = {name: [of[i] for i in others] for name, of in replays.items()}
        curves = _curves(session.networks, [evaluation.responses[i] for i in others], seen)
        calibrated = replace(session, networks=with_temperatures(session.networks, curves))
        own = [r for r, half in zip(evaluation.responses, halves, strict=True) if half == number]
        part = replace(evaluation, responses=tuple(own), curves=False)
        for name, of in replay_all(calibrated, part, kept, on_tokens).items():
            after[name] += of
    order = sorted(range(len(halves)), key=lambda i: halves[i])  # as `after` has them
    return Fit(
        **{name: _best(curves) for name, curves in whole.items()},
        first_slots={t: tuple(c.slots.tolist()) for t, c in whole["first"].items()},
        second_slots={t: tuple(c.slots.tolist()) for t, c in whole["second"].items()},
        before=_of_all(evaluation.responses, replays),
        after=_of_all([evaluation.responses[i] for i in order], after),
    )


def with_temperatures(
    networks: Networks, curves: Mapping[str, Mapping[float, LossCurves]] | None
) -> Networks:
    """The same weights with fitted temperatures in place of their own, or with none at all."""

    def changed(network: DraftNetwork | None, name: str) -> DraftNetwork | None:
        if network is None:
            return None
        copied = copy.copy(network)  # shares the weights
        fitted = {} if curves is None else {**network.config.temperatures, **_best(curves[name])}
        copied.config = replace(network.config, temperatures=fitted)
        return copied

    first = changed(networks.first, "first")
    same = networks.second is networks.first
    return replace(
        networks, first=first, second=first if same else changed(networks.second, "second")
    )


def fingerprint(session: Session) -> str:
    """Changes with the weights of target and drafters, their temperatures, dtype and device."""
    digest = hashlib.sha256(f"{__version__} {session.target.dtype}".encode())
    digest.update(session.target.device.type.encode())
    for module in (session.model, session.networks.first, session.networks.second):
        if module is None:
            continue
        if isinstance(module, DraftNetwork):
            config = sorted(module.config.temperatures.items())
            digest.update(repr((config, module.config.network.to_dict())).encode())
        for name, weight in module.state_dict().items():
            values = weight.detach().flatten()
            sample = values[:: max(len(values) // SAMPLED, 1)].double().cpu()
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _curves(
    networks: Networks, responses: Sequence[Response], replays: Mapping[str, Sequence[Replayed]]
) -> dict[str, dict[float, LossCurves]]:
    """Summed curves of each pass by decoding temperature; of both where one network serves both."""
    found: dict[str, dict[float, LossCurves]] = {"first": {}, "second": {}}
    for temperature in sorted({response.temperature for response in responses}):
        of = [
            replayed
            for replayeds in replays.values()
            for response, replayed in zip(responses, replayeds, strict=True)
            if response.temperature == temperature
        ]
        first = reduce(add, (replayed.first for replayed in of))
        second = reduce(add, (replayed.second for replayed in of))
        if networks.second is networks.first:
            first = second = first + second
        found["first"][temperature], found["second"][temperature] = first, second
    return found


def _best(curves: Mapping[float, LossCurves]) -> ByTemperature:
    fitted = {t: best_temperatures(c) for t, c in curves.items() if len(c.slots)}
    return {t: temperatures for t, temperatures in fitted.items() if temperatures}


def _halves(responses: Sequence[Response]) -> list[int]:
    """0 or 1 for every answer: by turns among those of its decoding temperature."""
    seen: dict[float, int] = {}
    halves = []
    for response in responses:
        place = seen.get(response.temperature, 0)
        seen[response.temperature] = place + 1
        halves.append(place % 2)
    return halves


def _of_all(responses: Sequence[Response], replays: Replays) -> tuple[Group, ...]:
    return tuple(group for group in groups(responses, replays) if group.honesty is not None)


def _hashed(parts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _plain(replayed: Replayed) -> dict[str, Any]:
    curves = {
        name: {"losses": of.losses.tolist(), "slots": of.slots.tolist()}
        for name, of in (("first", replayed.first), ("second", replayed.second))
    }
    return {"steps": [asdict(step) for step in replayed.steps], **curves}


def _replayed(values: Mapping[str, Any]) -> Replayed:
    def curves(of: Mapping[str, Any]) -> LossCurves:
        slots = torch.tensor(of["slots"], dtype=torch.long)
        if not len(slots):
            return LossCurves.empty(0)
        return LossCurves(torch.tensor(of["losses"], dtype=torch.float64), slots)

    steps = tuple(
        ReplayedStep(
            **{
                **step,
                "accepted": tuple(step["accepted"]),
                "rows": tuple(
                    JudgedRow(**{**row, "confidence": tuple(row["confidence"])})
                    for row in step["rows"]
                ),
            }
        )
        for step in values["steps"]
    )
    return Replayed(steps, curves(values["first"]), curves(values["second"]))
