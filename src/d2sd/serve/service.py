"""From a request's fields to jobs of the worker, and their events back, one stream each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import torch

from d2sd.drafters.policies import Policy, parse_policy
from d2sd.generate import Request
from d2sd.sampling import LogitsProcessor, Sampling
from d2sd.serve.errors import ApiError
from d2sd.serve.grammar import Grammars
from d2sd.serve.jobs import Event, Failed, Finished, Job
from d2sd.serve.metrics import Metrics
from d2sd.serve.processors import CountPenalties, RepetitionPenalty, RowLog
from d2sd.serve.queueing import ClosedError, FairQueue, FullError
from d2sd.serve.schema import Asked, ChatAsked, TextAsked
from d2sd.serve.worker import Worker
from d2sd.session import Session


@dataclass(frozen=True)
class Limits:
    """What one server allows: requests that wait, new tokens, seconds an answer may take in all."""

    queue: int = 64
    max_tokens: int = 1024
    seconds: float = 600.0
    prefix_bytes: int = 256 * 2**20


class Running:
    """The events of one job as the event loop sees them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def hear(self, event: Event) -> None:
        """Called by the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is gone, and with it whoever would listen
            return

    async def events(self) -> AsyncIterator[Event]:
        """Up to the last one, Finished or Failed."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return


@dataclass(frozen=True)
class Started:
    """A job in the queue or at work."""

    job: Job
    running: Running


class Service:
    """One session behind a queue."""

    def __init__(self, session: Session, policy: Policy, limits: Limits) -> None:
        self.session, self.policy, self.limits = session, policy, limits
        self.queue: FairQueue[Job] = FairQueue(limits.queue)
        self.metrics = Metrics(lambda: len(self.queue))
        self.worker = Worker(session, self.queue, self.metrics, limits.prefix_bytes)
        self._grammars = Grammars(session)

    @property
    def plain_speed(self) -> float | None:
        """Tokens a second without drafting, by the cost table; None where nothing was measured."""
        if not self.policy.needs_costs:
            return None
        costs = self.session.costs
        return 1 / (costs.target_seconds(1, 256) + costs.overhead)

    def start(self, asked: Asked, client: str) -> list[Started]:
        """All choices of a request into the queue, or an ApiError that says why not."""
        try:
            policy = self.policy if asked.policy is None else self._policy(asked.policy)
            prompts = self._prompts(asked)
            jobs = [
                self._job(asked, prompt, place, policy, client)
                for place, prompt in enumerate(p for p in prompts for _ in range(asked.n))
            ]
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value") from None
        try:
            self.queue.put(*(one.job for one in jobs))
        except FullError:
            wait = self.worker.pace.wait_for(len(self.queue))
            raise ApiError(
                429,
                f"{len(self.queue)} requests wait already; come back in about {wait} s",
                "queue_full",
                headers={"Retry-After": str(wait)},
            ) from None
        except ClosedError:
            raise ApiError(503, "the server is shutting down", "shutting_down") from None
        return jobs

    def _policy(self, text: str) -> Policy:
        policy = parse_policy(text)
        self.session.drafter(policy)  # says what is missing before anything waits
        return policy

    def _prompts(self, asked: Asked) -> list[tuple[int, ...]]:
        if isinstance(asked, ChatAsked):
            return [self.session.chat_prompt([message.plain() for message in asked.messages])]
        assert isinstance(asked, TextAsked)
        return [self.session.raw_prompt(prompt) for prompt in asked.prompts]

    def _job(
        self, asked: Asked, prompt: tuple[int, ...], place: int, policy: Policy, client: str
    ) -> Started:
        wanted = asked.alternatives if isinstance(asked, ChatAsked | TextAsked) else None
        rows = None if wanted is None else RowLog(wanted)
        limit = asked.limit if isinstance(asked, ChatAsked | TextAsked) else None
        request = Request(
            prompt=prompt,
            sampling=self._sampling(asked, len(prompt), place, rows),
            max_new_tokens=min(limit or self.limits.max_tokens, self.limits.max_tokens),
            stop_tokens=self.session.stop_tokens,
            stop_strings=asked.stops,
        )
        if not prompt:
            raise ValueError("the prompt is empty; give some text")
        limit_of_context = self.session.target.context_limit
        if len(prompt) >= limit_of_context:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens and the model's context holds "
                f"{limit_of_context}; shorten it"
            )
        running = Running()
        deadline = time.monotonic() + self.limits.seconds
        return Started(Job(client, request, policy, deadline, running.hear, rows), running)

    def _sampling(
        self, asked: Asked, prompt_tokens: int, place: int, rows: RowLog | None
    ) -> Sampling:
        processors: list[LogitsProcessor] = [] if rows is None else [rows]
        if asked.repetition_penalty != 1:
            processors.append(RepetitionPenalty(asked.repetition_penalty))
        if asked.presence_penalty or asked.frequency_penalty:
            processors.append(
                CountPenalties(prompt_tokens, asked.presence_penalty, asked.frequency_penalty)
            )
        if asked.response_format is not None:
            mask = self._grammars.processor(asked.response_format, prompt_tokens)
            processors += [] if mask is None else [mask]
        seed = random.getrandbits(62) if asked.seed is None else asked.seed
        return Sampling(
            temperature=asked.temperature,
            top_k=asked.top_k,
            top_p=asked.top_p,
            min_p=asked.min_p,
            processors=tuple(processors),
            rng=torch.Generator().manual_seed((seed + place) % 2**63),
        )
