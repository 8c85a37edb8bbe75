"""Whose turn it is: deadlines, clients that leave, clients that take turns.

The target's passes wait for leave, so nothing here depends on how fast it is.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from d2sd.serve.service import SLACK, Limits
from d2sd.session import ModelChoice, Session, open_session
from folders import save_target
from serve_process import Heard, ask
from serving import Serving, serving

PATIENCE = 20


class Gate:
    """A step's target pass, which runs when it may; counts how often it did."""

    def __init__(self, run) -> None:
        self.passes = 0
        self._run, self._leave, self._open = run, threading.Semaphore(0), False

    def __call__(self, tree, cache, with_logits=True):
        if not with_logits:  # reads the prompt
            return self._run(tree, cache, with_logits)
        if not self._open:
            self._leave.acquire()
        self.passes += 1
        return self._run(tree, cache, with_logits)

    def let(self, passes: int) -> None:
        """Let so many more pass, and wait until they have."""
        wanted = self.passes + passes
        self._leave.release(passes)
        wait_for(lambda: self.passes == wanted)

    def open(self) -> None:
        self._open = True
        self._leave.release(1000)


@pytest.fixture(scope="module")
def session(tmp_path_factory) -> Session:
    folder = save_target(tmp_path_factory.mktemp("home") / "target")
    session = open_session(ModelChoice(str(folder), device="cpu", dtype="float32"), ["none"])
    assert session.costs.target  # measured now: later the gate is shut
    return session


@pytest.fixture
def gate(session: Session) -> Iterator[Gate]:
    run = session.target.run
    session.target.run = gate = Gate(run)
    yield gate
    gate.open()
    session.target.run = run


def values(session: Session, words: str = "hello", **changes: object) -> dict[str, object]:
    messages = [{"role": "user", "content": words}]
    plain = {"model": session.name, "messages": messages, "temperature": 0, "max_tokens": 20}
    return {**plain, **changes}


def asking(
    server: Serving, words: str = "hello", **changes: object
) -> tuple[Heard, threading.Thread]:
    heard = Heard()
    asked = values(server.session, words, **changes)
    thread = threading.Thread(target=ask, args=(server.url, asked, heard))
    thread.start()
    return heard, thread


def wait_for(what) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.002)


def metric(server: Serving, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"d2sd_{name}"))


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_hears_of_the_deadline_though_the_worker_is_busy(session, gate, stream) -> None:
    with serving(session, "none", Limits(seconds=0.6)) as server:
        start = time.monotonic()
        busy, first = asking(server, stream=stream)
        wait_for(lambda: server.service.worker._at_work is not None)
        waiting, second = asking(server, stream=stream)
        first.join(PATIENCE)
        second.join(PATIENCE)
        assert 0.6 <= time.monotonic() - start < 0.6 + SLACK + 1.5
        assert [one.status for one in (busy, waiting)] == [200 if stream else 408] * 2
        assert [one.error["code"] for one in (busy, waiting)] == ["timeout"] * 2
        assert len(server.service.queue) == 0
        assert gate.passes == 0
        gate.open()
        wait_for(lambda: server.service.worker._at_work is None)
        again, third = asking(server)
        third.join(PATIENCE)
        assert again.status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_worker_within_one_step(session, gate, stream) -> None:
    with serving(session, "none") as server:
        with visitor(server, stream=stream):
            gate.let(3)
            wait_for(lambda: metric(server, "steps_total") == 3)
            job = server.service.worker._at_work
        wait_for(job.cancelled.is_set)
        gate.open()
        wait_for(lambda: server.service.worker._at_work is None)
        assert metric(server, "steps_total") == 4
        assert gate.passes == 4
        wait_for(lambda: metric(server, 'requests_total{status="499"}') == 1)


def test_a_client_that_leaves_while_it_waits_gives_up_its_place(session, gate) -> None:
    with serving(session, "none", Limits(queue=1)) as server:
        _, first = asking(server)
        wait_for(lambda: server.service.worker._at_work is not None)
        for stream in (False, True):
            with visitor(server, stream=stream):
                wait_for(lambda: len(server.service.queue) == 1)
                full = ask(server.url, values(session), Heard())
                assert full.status == 429
                assert int(full.headers["retry-after"]) >= 1
            wait_for(lambda: len(server.service.queue) == 0)
        assert gate.passes == 0  # all of that while the worker was at one pass
        taken, last = asking(server, "mine")
        gate.open()
        for thread in (first, last):
            thread.join(PATIENCE)
        assert taken.status == 200


def test_a_stream_whose_client_left_before_it_began_is_not_made(session, gate) -> None:
    with serving(session, "none") as server:
        _, first = asking(server)
        wait_for(lambda: server.service.worker._at_work is not None)
        for _ in range(5):
            with visitor(server, stream=True):
                pass
        wait_for(lambda: metric(server, 'requests_total{status="499"}') == 5)
        assert len(server.service.queue) == 0
        gate.open()
        first.join(PATIENCE)


@contextmanager
def visitor(server: Serving, **changes: object) -> Iterator[None]:
    """A client that has sent its request and leaves, without a word, at the end of the block."""
    body = json.dumps(values(server.session, "gone", **changes))
    host, port = server.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as door:
        door.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        yield


def test_users_take_turns(session, gate) -> None:
    with serving(session, "none") as server:
        done: list[str] = []

        def one(user: str, name: str) -> None:
            answer = ask(server.url, values(session, name, user=user, max_tokens=2), Heard())
            done.append(name if answer.done else f"{name} failed")

        threads = []
        for number, (user, name) in enumerate(
            [("busy", "b0"), ("busy", "b1"), ("busy", "b2"), ("rare", "r0"), ("third", "t0")]
        ):
            threads.append(threading.Thread(target=one, args=(user, name)))
            threads[-1].start()
            if number == 0:
                wait_for(lambda: server.service.worker._at_work is not None)
            else:
                wait_for(lambda number=number: len(server.service.queue) == number)
        gate.open()
        for thread in threads:
            thread.join(PATIENCE)
        assert done == ["b0", "b1", "r0", "t0", "b2"]


def test_an_end_is_told_while_a_pass_goes_on(session, gate) -> None:
    with serving(session, "none") as server:
        stream, first = asking(server, stream=True)
        wait_for(lambda: stream.events and server.service.worker._at_work is not None)
        whole, second = asking(server)
        wait_for(lambda: len(server.service.queue) == 1)
        threading.Thread(target=server.service.worker.stop, args=(0.0,), daemon=True).start()
        for thread in (first, second):
            thread.join(PATIENCE)
        assert gate.passes == 0
        assert stream.error["code"] == whole.error["code"] == "shutting_down"
        assert whole.status == 503
        late = ask(server.url, values(session), Heard())
        assert late.status == 503
        gate.open()
