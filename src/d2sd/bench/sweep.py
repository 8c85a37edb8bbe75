"""Servers of OpenAI's protocol under rising load: how many tokens a second, how long to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from d2sd.answers.endpoint import Connection, new_text

Hear = Callable[[int, int], object]
"""Is told how many loads are done, and of how many."""


@dataclass(frozen=True)
class Server:
    """A server by the name it has in tables, and what every request to it says."""

    name: str
    connection: Connection
    model: str


@dataclass(frozen=True)
class Load:
    """What is sent: first turns of prompts, all by `clients` threads, each with one at a time."""

    prompts: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Served:
    """One answer as its client saw it. Times in seconds since it was asked for.

    `steps` is the server's own count of target passes, where it gives one.
    """

    text: str
    tokens: int
    first: float
    seconds: float
    steps: int | None


@dataclass(frozen=True)
class Run:
    """All answers of one server to one load; `seconds` from the first request to the last token."""

    server: str
    clients: int
    seconds: float
    answers: tuple[Served, ...]

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    @property
    def first_token(self) -> float:
        """Seconds to the first text, in the median, waiting included."""
        return median(answer.first for answer in self.answers)

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per target pass, where the server counts its passes."""
        steps = [answer.steps for answer in self.answers]
        if None in steps:
            return None
        return sum(answer.tokens for answer in self.answers) / sum(filter(None, steps))

    def same_texts(self, other: Run) -> int:
        """How many answers say the same as those of `other` to the same prompts."""
        pairs = zip(self.answers, other.answers, strict=True)
        return sum(ours.text == theirs.text for ours, theirs in pairs)


def sweep(
    servers: Sequence[Server], load: Load, clients: Sequence[int], hear: Hear
) -> Iterator[Run]:
    """Every server under every number of clients; servers take turns at each number.

    Every server answers one prompt beforehand, so that none starts cold. Raises ValueError where a
    server refuses or breaks off.
    """
    for server in servers:
        asked(server, load, 0)
    for place, count in enumerate(clients):
        # who goes first changes, so that a slow minute of the machine meets everyone
        turn = place % len(servers)
        for number, server in enumerate([*servers[turn:], *servers[:turn]]):
            hear(place * len(servers) + number, len(clients) * len(servers))
            yield loaded(server, load, count)


def loaded(server: Server, load: Load, clients: int) -> Run:
    """All prompts of the load by so many clients at once."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = tuple(pool.map(partial(asked, server, load), range(len(load.prompts))))
    return Run(server.name, clients, time.perf_counter() - start, answers)


def asked(server: Server, load: Load, number: int) -> Served:
    """One prompt, streamed."""
    values = {
        "model": server.model,
        "messages": [{"role": "user", "content": load.prompts[number]}],
        "max_tokens": load.max_new_tokens,
        "temperature": load.temperature,
        "seed": load.seed + number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, first = "", None
    usage: dict[str, Any] = {}
    start = time.perf_counter()
    for event in server.connection.stream("/chat/completions", values):
        usage = event.get("usage") or usage
        piece = new_text(event)
        if piece and first is None:
            first = time.perf_counter() - start
        text += piece
    seconds = time.perf_counter() - start
    if "completion_tokens" not in usage:
        raise ValueError(f"{server.name} doesn't say how many tokens it generated")
    tokens, steps = int(usage["completion_tokens"]), usage.get("steps")
    return Served(text, tokens, seconds if first is None else first, seconds, steps)
