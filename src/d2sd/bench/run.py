"""A bench from what was asked for to its results, by way of a log that they are computed from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from d2sd.bench.contenders import Absent, Contender, PolicyContender
from d2sd.bench.figures import calibrations, sections
from d2sd.bench.means import means
from d2sd.bench.peers import open_peers
from d2sd.bench.prompts import Prompt
from d2sd.bench.results import Participant, Results
from d2sd.bench.trials import Bench, Task, Trial
from d2sd.bench.workload import Workload
from d2sd.drafters.policies import Policy
from d2sd.journal import Journal, lines_of
from d2sd.sampling import Sampling
from d2sd.session import Session

LOG = "log.jsonl"
OF_THE_RUN = ("command", "date", "commit")
"""What may differ where a killed run goes on."""


@dataclass(frozen=True)
class Order:
    """What is to be measured. Of `workload` the prompts and the temperature are put in by suite.

    `peers` take part at `peer_temperatures` only: at others they draw other tokens than ours, so
    that their answers and their lengths are not the same work. `origins`: where suites are from.
    """

    suites: Mapping[str, tuple[Prompt, ...]]
    policies: tuple[Policy, ...]
    temperatures: tuple[float, ...] = (0.0,)
    peers: tuple[str, ...] = ()
    peer_temperatures: tuple[float, ...] = (0.0,)
    assistant: str | None = None
    workload: Workload = field(default_factory=lambda: Workload(()))
    study: str | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [policy.text for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"the policies {', '.join(names)} name one twice; give each once")

    def tasks(self, contenders: Sequence[Contender]) -> list[Task]:
        """Temperature by temperature, suite by suite."""
        return [
            Task(
                suite,
                replace(
                    self.workload,
                    prompts=prompts,
                    sampling=replace(self.workload.sampling, temperature=temperature),
                ),
                tuple(one.name for one in contenders if self._takes_part(one, temperature)),
            )
            for temperature in self.temperatures
            for suite, prompts in self.suites.items()
        ]

    def _takes_part(self, contender: Contender, temperature: float) -> bool:
        if contender.kind == "policy":
            return True
        return temperature in self.peer_temperatures and (contender.sampled or temperature == 0)

    def settings(self, session: Session) -> dict[str, object]:
        """What must be equal for two logs to be of one bench."""
        facts = session.provenance(self.workload.seed)
        sampling: Sampling = self.workload.sampling
        return {
            "suites": {suite: len(prompts) for suite, prompts in self.suites.items()},
            "origins": dict(self.origins),
            "temperatures": list(self.temperatures),
            "max_new_tokens": self.workload.max_new_tokens,
            "thinking": self.workload.thinking,
            **{name: getattr(sampling, name) for name in ("top_p", "top_k", "min_p")},
            **{name: value for name, value in facts.items() if name not in OF_THE_RUN},
        }


def run(
    session: Session,
    order: Order,
    journal: Journal,
    hear: Callable[[int, int], object] = lambda done, total: None,
) -> Results:
    """Measure what is not in `journal` yet; the results are those of the whole log.

    `hear` is told how many prompts are done, and of how many.
    """
    peers = open_peers(order.peers, session, order.assistant)
    contenders: list[Contender] = [PolicyContender(session, policy) for policy in order.policies]
    contenders += [peer for peer in peers if isinstance(peer, Contender)]
    absent = {peer.name: peer.reason for peer in peers if isinstance(peer, Absent)}
    header = {
        "study": order.study,
        "participants": [asdict(Participant(c.name, c.kind, c.arithmetic)) for c in contenders],
        "absent": {**order.absent, **absent},
        "settings": order.settings(session),
    }
    bench = Bench(
        session,
        {one.name: one for one in contenders},
        order.tasks(contenders),
        _judge(order.policies),
    )
    facts = session.provenance(order.workload.seed)
    trials = bench.run(journal, json.loads(json.dumps(header)), facts, hear)
    return results_of(*trials)


def _judge(policies: Sequence[Policy]) -> Policy | None:
    """Of the policies that draft by networks alone the first with most passes."""
    drafting = [policy for policy in policies if policy.proposers and not policy.needs_costs]
    return max(drafting, key=lambda policy: policy.proposers, default=None)


def results_of(began: Mapping[str, Any], trials: Sequence[Trial]) -> Results:
    """The results that a log gives: `began` is its first entry."""
    header, facts = began["header"], began["run"]
    return Results(
        study=header["study"],
        participants=tuple(Participant(**one) for one in header["participants"]),
        absent={**header["absent"], **_broken(trials)},
        sections=sections(trials),
        means=means(trials),
        calibration=calibrations(trials),
        settings=header["settings"],
        run=facts,
    )


def _broken(trials: Sequence[Trial]) -> dict[str, str]:
    """Other programs that broke down, and the first prompt on which they did."""
    found: dict[str, str] = {}
    for trial in trials:
        for name, words in trial.failed.items():
            where = f"{trial.suite} at temperature {trial.temperature:g}, prompt {trial.prompt}"
            found.setdefault(name, f"it broke down on {where}, so that suite is missing: {words}")
    return found


def logged(folder: Path) -> Results:
    """The results of the log in a bench's folder, plain or gzipped.

    Raises ValueError where there is none.
    """
    found = [path for name in (LOG, f"{LOG}.gz") if (path := folder / name).exists()]
    if not found:
        raise ValueError(f"{folder} holds no {LOG}; give a folder that d2sd bench --out wrote")
    began, *parts = (json.loads(line)["holds"] for line in lines_of(found[0]))
    return results_of(began, [Trial.from_json(part) for part in parts])
