"""Whoever owns the model: takes jobs from the queue and answers them one by one."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

from d2sd.drafters.policies import Policy
from d2sd.generate import stream
from d2sd.interfaces import Drafter
from d2sd.serve.jobs import LEFT, STOPPING, TIMEOUT, Failed, Finished, Job, Progress
from d2sd.serve.metrics import Metrics
from d2sd.serve.prefixes import PrefixCache
from d2sd.serve.queueing import FairQueue, Pace
from d2sd.session import Session
from d2sd.stages import Stages

MOST_DRAFTERS = 8
LAST_PASS = 2.0
"""Seconds that the last pass has to end when the server does."""
logger = logging.getLogger(__name__)


class Worker:
    """Answers the jobs of `queue` until that is closed and empty."""

    def __init__(
        self, session: Session, queue: FairQueue[Job], metrics: Metrics, prefix_bytes: int
    ) -> None:
        self._session, self._queue, self._metrics = session, queue, metrics
        self._prefixes = PrefixCache(session.target, prefix_bytes)
        metrics.watch(
            "prefix_cache_bytes", "Rows of earlier conversations", lambda: self._prefixes.bytes
        )
        self._drafters: OrderedDict[tuple[str, float], Drafter] = OrderedDict()
        self._stages = Stages(session.target.device)
        self._begun, self._done = threading.Event(), threading.Event()
        self._hurry = threading.Event()
        self._at_work: Job | None = None
        self.pace = Pace()

    def start(self) -> None:
        """`work` in a thread of its own."""
        self._begun.set()
        threading.Thread(target=self.work, name="d2sd-worker", daemon=True).start()

    def stop(self, grace: float) -> None:
        """Answer what was accepted for at most `grace` seconds; then fail the rest, in words.

        That is said at once: a pass over a long prompt may take longer than anyone waits.
        """
        self._queue.close()
        if self.is_alive:
            self._done.wait(grace)
        self._hurry.set()
        at_work = self._at_work
        for job in (*self._queue.emptied(), *([] if at_work is None else [at_work])):
            job.hear(STOPPING)
        if self.is_alive:
            self._done.wait(LAST_PASS)

    @property
    def is_alive(self) -> bool:
        return self._begun.is_set() and not self._done.is_set()

    def work(self) -> None:
        """Answer jobs in this thread until the queue is closed and empty."""
        self._begun.set()
        try:
            while (job := self._queue.get()) is not None:
                if not job.cancelled.is_set():
                    self._at_work = job
                    self._attend_to(job)
                    self._at_work = None
        finally:
            self._done.set()

    def _attend_to(self, job: Job) -> None:
        start = time.monotonic()
        try:
            job.hear(self._answered(job))
        except ValueError as error:  # what was asked cannot be done
            job.hear(Failed(str(error), 400, "invalid_request"))
        except Exception:  # whatever it is, the next request must be answered
            logger.exception("a request failed")
            job.hear(Failed("the server failed on this request", 500, "internal_error"))
        self.pace.took(time.monotonic() - start)
        self._metrics.staged(self._stages.seconds)
        self._stages.forget()

    def _answered(self, job: Job) -> Finished | Failed:
        """Run the job; gives its last event."""
        session, request = self._session, job.request
        if self._hurry.is_set():
            return STOPPING
        if time.monotonic() > job.deadline:
            return TIMEOUT
        reused = self._prefixes.prepare(request.prompt)
        drafter = self._drafter(job.policy, request.sampling.temperature)
        steps = tokens = 0
        begin = last = time.perf_counter()
        for piece in stream(session.target, drafter, request, session.tokenizer, self._stages):
            now = time.perf_counter()
            if not steps:  # what came before was reading the prompt, not decoding
                begin = last = begin + self._stages.seconds["prefill"]
            steps, tokens = steps + 1, tokens + len(piece.tokens)
            chances = () if job.rows is None else tuple(job.rows.taken(piece.tokens))
            job.hear(Progress(piece, chances, steps, tokens, now - begin, now - last))
            last = now
            self._metrics.stepped(len(piece.tokens))
            if piece.finish_reason:
                return Finished(piece.finish_reason, len(request.prompt), reused, tokens, steps)
            if ended := self._ends(job):
                return ended
        raise AssertionError("a stream ends with a finish reason")

    def _ends(self, job: Job) -> Failed | None:
        """Why an answer must not go on after this step."""
        if job.cancelled.is_set():
            return LEFT
        if self._hurry.is_set():
            return STOPPING
        return TIMEOUT if time.monotonic() > job.deadline else None

    def _drafter(self, policy: Policy, temperature: float) -> Drafter:
        """One that may have learned from earlier answers; the least lately used are dropped."""
        key = policy.text, temperature
        if key not in self._drafters:
            self._drafters[key] = self._session.drafter(policy, temperature, self._stages)
        self._drafters.move_to_end(key)
        if len(self._drafters) > MOST_DRAFTERS:
            self._drafters.popitem(last=False)
        return self._drafters[key]
