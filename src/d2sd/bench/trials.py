"""Every contender answers every prompt: one process, one target, prompt by prompt in turn.

The order rotates from prompt to prompt, so that whatever slows the machine for a while slows
everyone alike. Each finished prompt is on disk before the next begins: a killed run goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from d2sd.bench.contenders import Contender
from d2sd.bench.records import Answer
from d2sd.bench.replay import JudgedRow, recited, replay
from d2sd.bench.workload import Turn, Workload, conversation
from d2sd.drafters.policies import Policy
from d2sd.journal import Journal
from d2sd.session import Session
from d2sd.train.responses import Response

WARM_UP_TOKENS = 16
BASELINE = "none"
BREAKDOWNS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What another program may raise where it can't go on."""


@dataclass(frozen=True)
class Task:
    """A suite at one temperature, and who answers it."""

    suite: str
    workload: Workload
    contenders: tuple[str, ...]

    @property
    def temperature(self) -> float:
        return self.workload.sampling.temperature


@dataclass(frozen=True)
class Trial:
    """One prompt, answered turn by turn by every contender.

    `judged` are the rows that the judge drafted when an answer was replayed; `failed` names other
    programs that broke down on this prompt, with what they said.
    """

    suite: str
    temperature: float
    number: int
    prompt: str
    answers: Mapping[str, tuple[Answer, ...]]
    judged: tuple[JudgedRow, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {
            "suite": self.suite,
            "temperature": self.temperature,
            "number": self.number,
            "prompt": self.prompt,
            "answers": {
                name: [answer.to_json() for answer in turns] for name, turns in self.answers.items()
            },
            "judged": [_row_json(row) for row in self.judged],
            "failed": dict(self.failed),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        answers = {
            name: tuple(Answer.from_json(answer) for answer in turns)
            for name, turns in values["answers"].items()
        }
        judged = tuple(_row(*row) for row in values["judged"])
        return cls(**{**values, "answers": answers, "judged": judged})


@dataclass(frozen=True)
class Bench:
    """Who takes part, in what. `judge` is the policy whose confidences are held to the answers."""

    session: Session
    contenders: Mapping[str, Contender]
    tasks: Sequence[Task]
    judge: Policy | None = None

    @property
    def prompts(self) -> int:
        """How many trials there are in all."""
        return sum(len(task.workload.prompts) for task in self.tasks)

    def run(
        self,
        journal: Journal,
        header: Mapping[str, Any],
        facts: Mapping[str, Any],
        hear: Callable[[int, int], object] = lambda done, total: None,
    ) -> tuple[Mapping[str, Any], list[Trial]]:
        """The log's first entry and all its trials; those that it holds are not made again.

        The first entry is `header`, and under "run" the `facts` of the run that began the log.
        Raises ValueError when that was done under another header.
        """
        if not len(journal):
            journal.append({"header": header, "run": facts})
        began, *parts = journal
        if began["header"] != header:
            raise ValueError(
                f"{journal.path} was begun with other settings; choose another --out, or delete it"
            )
        hear(len(parts), self.prompts)
        for trial in self._missing(len(parts)):
            journal.append(trial.to_json())
            hear(len(journal) - 1, self.prompts)
        return began, [Trial.from_json(part) for part in islice(journal, 1, None)]

    def _missing(self, done: int) -> Iterator[Trial]:
        """The trials after the first `done`, in their order."""
        warm = False
        for task in self.tasks:
            count = len(task.workload.prompts)
            if done >= count:
                done -= count
                continue
            if not warm:
                self._warm_up(task)
                warm = True
            for name in task.contenders:
                self.contenders[name].begin(task.temperature)
            for number in range(done, count):
                yield self._trial(task, number)
            done = 0

    def _warm_up(self, task: Task) -> None:
        """A short answer by everyone: what is compiled, allocated or read once is not measured."""
        short = replace(task.workload, max_new_tokens=WARM_UP_TOKENS)
        for name, contender in self.contenders.items():
            if name in task.contenders:
                contender.begin(task.temperature)
            self._answered(contender, short, 0)

    def _trial(self, task: Task, number: int) -> Trial:
        found = {
            name: self._answered(self.contenders[name], task.workload, number)
            for name in rotated(task.contenders, number)
        }
        turns = {name: of for name, of in found.items() if not isinstance(of, str)}
        return Trial(
            suite=task.suite,
            temperature=task.temperature,
            number=number,
            prompt=task.workload.prompts[number].id,
            answers={
                name: tuple(turn.answer for turn in turns[name])
                for name in task.contenders
                if name in turns
            },
            judged=tuple(self._judged(turns, task.temperature)),
            failed={name: of for name, of in found.items() if isinstance(of, str)},
        )

    def _answered(
        self, contender: Contender, workload: Workload, number: int
    ) -> list[Turn[Answer]] | str:
        """The turns, or what another program said when it broke down; ours must not."""
        try:
            return list(conversation(self.session, contender.answer, workload, number))
        except BREAKDOWNS as error:
            if contender.kind == "policy":
                raise
            return " ".join(str(error).split()) or type(error).__name__

    def _judged(self, turns: Mapping[str, list[Turn[Answer]]], temp: float) -> Iterator[JudgedRow]:
        """What the judge's passes said of the baseline's answers, off the clock."""
        if self.judge is None:
            return
        for turn in turns.get(BASELINE) or next(iter(turns.values())):
            response = Response(turn.request.prompt, turn.answer.token_ids, temp)
            whole = recited(self.session, response)
            for step in replay(self.session, response, whole, self.judge).steps:
                yield from step.rows


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The names from another start."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def _row_json(row: JudgedRow) -> list[object]:
    confidence = [round(c, 3) for c in row.confidence]
    return [int(row.second), row.kept, confidence, row.known, row.right]


def _row(second: int, kept: int, confidence: list[float], known: int, right: int) -> JudgedRow:
    return JudgedRow(bool(second), kept, tuple(confidence), known, right)
