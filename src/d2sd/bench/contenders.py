"""Who takes part in a bench: our policies and other programs, all asked in the same way."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from d2sd.bench.records import Answer, Steps
from d2sd.drafters.policies import Policy
from d2sd.generate import Generation, Piece, Request, generate
from d2sd.session import Session
from d2sd.stages import Stages

Kind = Literal["policy", "peer"]


@dataclass(frozen=True)
class Absent:
    """A contender that was asked for and cannot take part, and why."""

    name: str
    reason: str


class Contender(ABC):
    """Answers requests one at a time and tells what that took."""

    name: str
    kind: Kind
    arithmetic: str
    """Number types, weights and kernels, in a few words."""
    sampled: bool = True
    """Whether it can draw at temperatures above 0."""

    @abstractmethod
    def begin(self, temperature: float) -> None:
        """Another suite or temperature: whatever earlier answers taught is forgotten."""

    @abstractmethod
    def answer(self, request: Request) -> Answer:
        """Answer a request, from an empty cache: nothing may be reused of an earlier one."""


class PolicyContender(Contender):
    """One of our policies, through the loop of `d2sd.decode`."""

    kind = "policy"

    def __init__(self, session: Session, policy: Policy) -> None:
        self.name = policy.text
        self.policy = policy
        self._session = session
        kind = "compiled" if session.is_compiled else "eager"
        weights = "" if session.quantize == "none" else f", {session.quantize} weights"
        self.arithmetic = f"{str(session.target.dtype).removeprefix('torch.')}, {kind}{weights}"
        self.begin(0.0)

    def begin(self, temperature: float) -> None:
        self._stages = Stages(self._session.target.device)
        self._drafter = self._session.drafter(self.policy, temperature, self._stages)

    def answer(self, request: Request) -> Answer:
        session = self._session
        session.target.prefill(request.prompt[:1])  # empties the cache: one token is no row
        self._stages.forget()
        log = _PieceLog()
        found = generate(
            session.target, self._drafter, request, session.tokenizer, self._stages, log
        )
        return log.answer(found, self._stages.seconds)


class _PieceLog:
    """Notes every step of an answer as it comes."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._ends: list[float] = []

    def __call__(self, piece: Piece) -> None:
        self._ends.append(time.perf_counter())
        self._pieces.append(piece)

    def answer(self, found: Generation, stages: dict[str, float]) -> Answer:
        starts = [self._ends[-1] - found.seconds, *self._ends]
        made = [piece.step for piece in self._pieces]
        paths = [step.verdict.path[1:] for step in made]
        sources = Counter(
            step.tree.sources[node].partition("@")[0]
            for step, path in zip(made, paths, strict=True)
            for node in path
        )
        steps = Steps(
            emitted=tuple(len(piece.tokens) for piece in self._pieces),
            accepted=tuple(len(path) for path in paths),
            nodes=tuple(step.drafted for step in made),
            depth=tuple(max(step.tree.depths) for step in made),
            seconds=tuple(b - a for a, b in zip(starts, self._ends, strict=False)),
        )
        return Answer(
            text=found.text,
            token_ids=found.token_ids,
            prompt_tokens=found.prompt_tokens,
            steps=steps,
            prefill_seconds=found.prefill_seconds,
            stages=stages,
            sources=dict(sources),
        )
