"""How a server ends: every accepted request is answered or told why not; nothing is half said."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from d2sd.serve.logs import leave_values_out
from folders import save_target
from serve_process import Heard, Served, ask, ended, ready, started

KEY = "sesame-4711"
SECRET = "The cellar key lies below the third stone"
GRACES = {"patient": "60", "hasty": "0", "pressed": "60"}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[dict[str, Served]]:
    """One for each test, all started at once."""
    home = tmp_path_factory.mktemp("home")
    model = save_target(home / "target", max_position_embeddings=4096)
    with ExitStack() as stack:
        found = {
            name: stack.enter_context(
                ended(started(model, home / f"{name}.log", "--grace", grace, key=KEY))
            )
            for name, grace in GRACES.items()
        }
        for server in found.values():
            ready(server)
        assert mistaken(found["patient"]) == [404, 400, 400, 400, 401]
        yield found


def asked(server: Served, tokens: int, number: int, stream: bool) -> dict[str, object]:
    words = f"{SECRET} {number}"
    values = {"model": server.model, "temperature": 0, "max_tokens": tokens, "stream": stream}
    return {**values, "messages": [{"role": "user", "content": words}]}


def in_the_middle(server: Served, tokens: int) -> tuple[list[threading.Thread], list[Heard]]:
    """Six clients, every other one with a stream: the first is being answered, others wait."""
    heard = [Heard() for _ in range(6)]
    threads = []
    for number, one in enumerate(heard):
        values = asked(server, tokens, number, stream=number % 2 == 0)
        threads.append(threading.Thread(target=ask, args=(server.url, values, one, KEY)))
        threads[-1].start()
        wait_for(lambda one=one, number=number: one.status or number % 2)
    wait_for(lambda: heard[0].text and server.figure("queue") == 5)
    return threads, heard


def wait_for(what) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.005)


def test_an_idle_connection_outlasts_what_clients_keep(servers) -> None:
    """Or a request may be on its way just when the server closes; httpx keeps it for 5 s."""
    address = httpx.URL(servers["patient"].url)
    with socket.create_connection((address.host, address.port), timeout=5.5) as door:
        door.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        while not door.recv(4096).endswith(b"}"):
            pass
        with pytest.raises(TimeoutError):
            door.recv(1)  # an empty answer would be the end


def test_with_time_enough_all_that_was_accepted_is_answered(servers) -> None:
    server = servers["patient"]
    threads, heard = in_the_middle(server, 150)
    server.process.send_signal(signal.SIGTERM)
    late = refused(server)
    for thread in threads:
        thread.join(60)
    assert server.process.wait(10) == 0
    assert [one.trouble for one in heard] == [""] * 6
    assert all(one.done for one in heard)
    assert late


def refused(server: Served) -> bool:
    """Whether a new request is not taken any more, soon after the signal."""
    for _ in range(100):
        found = ask(server.url, asked(server, 1, 9, stream=False), Heard(), KEY)
        if found.trouble or (found.status == 503 and found.error["code"] == "shutting_down"):
            return True
        time.sleep(0.01)
    return False


def test_without_time_every_request_hears_why(servers) -> None:
    server = servers["hasty"]
    threads, heard = in_the_middle(server, 3000)
    server.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    for thread in threads:
        thread.join(30)
    assert server.process.wait(10) == 0
    assert time.monotonic() - start < 5
    assert [one.trouble for one in heard] == [""] * 6
    assert heard[0].text  # it was half said
    for number, one in enumerate(heard):
        assert one.status == (503 if number % 2 else 200)
        assert one.error["code"] == "shutting_down"
        assert set(one.error) == {"message", "type", "param", "code"}


def test_a_second_signal_ends_it_at_once(servers) -> None:
    server = servers["pressed"]
    threads, heard = in_the_middle(server, 3000)
    server.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(0.5)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(2) == 128 + signal.SIGTERM
    for thread in threads:
        thread.join(10)
    assert not any(one.done for one in heard)


def mistaken(server: Served) -> list[int]:
    """The statuses of requests that quote the secret and go wrong."""
    good = asked(server, 5, 0, stream=False)
    bodies = [{**good, "model": SECRET}, {**good, SECRET: 1}, {**good, "policy": SECRET}]
    bodies.append({**good, "stop": [SECRET] * 99})
    statuses = [ask(server.url, body, Heard(), KEY).status for body in bodies]
    return [*statuses, ask(server.url, good, Heard(), f"{KEY}x").status]


def test_neither_key_nor_prompt_is_ever_printed(servers) -> None:
    """Of all servers of this file, with whatever the other tests asked of them."""
    for server in servers.values():
        printed = server.log.read_text()
        assert "is open" in printed
        assert KEY not in printed
        assert "cellar" not in printed


def test_what_fails_is_printed_without_its_values() -> None:
    logger = logging.getLogger("test.values")
    leave_values_out(logger.name)
    printed = io.StringIO()
    logger.addHandler(logging.StreamHandler(printed))
    logger.propagate = False
    try:
        raise RuntimeError(SECRET)
    except RuntimeError:
        logger.exception("a request failed")
    assert "a request failed" in printed.getvalue()
    assert "test_serve_end.py" in printed.getvalue()
    assert printed.getvalue().rstrip().endswith("RuntimeError")
    assert "cellar" not in printed.getvalue()
