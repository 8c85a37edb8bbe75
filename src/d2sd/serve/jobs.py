"""One answer to be made, and what is told of it while it is made."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from d2sd.drafters.policies import Policy
from d2sd.generate import FinishReason, Piece, Request
from d2sd.serve.processors import RowLog, TokenChances


@dataclass(frozen=True)
class Progress:
    """One step of an answer. Times are in seconds since its decoding began."""

    piece: Piece
    chances: tuple[TokenChances, ...]
    steps: int
    new_tokens: int
    seconds: float
    step_seconds: float


@dataclass(frozen=True)
class Finished:
    """The end of an answer that came to one."""

    reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    new_tokens: int
    steps: int


@dataclass(frozen=True)
class Failed:
    """The end of one that didn't: in words for the client, with an HTTP status."""

    message: str
    status: int
    code: str


Event = Progress | Finished | Failed

TIMEOUT = Failed("the request was not answered in time", 408, "timeout")
STOPPING = Failed("the server is shutting down", 503, "shutting_down")
LEFT = Failed("the client has left", 499, "cancelled")


@dataclass(frozen=True, eq=False)
class Job:
    """A request as the worker takes it. `hear` is called from the worker's thread.

    What is heard after the first Finished or Failed counts for nothing. `deadline` is on
    `time.monotonic`'s clock.
    """

    client: str
    request: Request
    policy: Policy
    deadline: float
    hear: Callable[[Event], object]
    rows: RowLog | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
