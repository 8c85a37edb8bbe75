"""Who is answered next: bounded, fair between clients, nothing waits beyond its deadline."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Waiting(Protocol):
    """What the queue must know of a request."""

    @property
    def client(self) -> str:
        """Who asks: clients take turns."""


Job = TypeVar("Job", bound=Waiting)


class FullError(Exception):
    """No room: as many requests wait as may."""


class ClosedError(Exception):
    """The server is going down and takes nothing on any more."""


class FairQueue(Generic[Job]):
    """Clients take turns, whoever asked how often; within one client first come, first served."""

    def __init__(self, room: int) -> None:
        self._room, self._count, self._closed = room, 0, False
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def put(self, *jobs: Job) -> None:
        """All of them, or none and FullError; ClosedError once `close` was called."""
        with self._changed:
            if self._closed:
                raise ClosedError
            if self._count + len(jobs) > self._room:
                raise FullError
            for job in jobs:
                self._lines.setdefault(job.client, deque()).append(job)
            self._count += len(jobs)
            self._changed.notify()

    def get(self) -> Job | None:
        """The next one; waits for it. None when the queue is closed and empty."""
        with self._changed:
            while not self._count:
                if self._closed:
                    return None
                self._changed.wait()
            client, line = next(iter(self._lines.items()))
            job = line.popleft()
            self._count -= 1
            if line:
                self._lines.move_to_end(client)
            else:
                del self._lines[client]
            return job

    def discard(self, job: Job) -> None:
        """Take out one that waits, if it does: its client has left."""
        with self._changed:
            line = self._lines.get(job.client)
            if line is None or job not in line:
                return
            line.remove(job)
            self._count -= 1
            if not line:
                del self._lines[job.client]

    def emptied(self) -> list[Job]:
        """All that wait, taken out."""
        with self._changed:
            waiting = [job for line in self._lines.values() for job in line]
            self._lines.clear()
            self._count = 0
            self._changed.notify_all()
            return waiting

    def close(self) -> None:
        """Nothing more is taken on; what waits is still given out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Pace:
    """How long an answer takes of late, for a word to those who must come back later."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._seconds = now, 1.0

    def took(self, seconds: float) -> None:
        self._seconds = 0.8 * self._seconds + 0.2 * seconds

    def wait_for(self, jobs: int) -> int:
        """Whole seconds until about `jobs` answers are done; at least 1."""
        return max(1, round(self._seconds * jobs))
