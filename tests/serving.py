"""A server of the tiny model on a free port of the loopback, in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from d2sd.drafters.policies import parse_policy
from d2sd.serve.app import create_app
from d2sd.serve.service import Limits, Service
from d2sd.session import Session


@dataclass(frozen=True)
class Serving:
    """Where it is, and what is behind it."""

    url: str
    service: Service

    @property
    def session(self) -> Session:
        return self.service.session


@contextmanager
def serving(
    session: Session, policy: str = "ngram", limits: Limits | None = None, key: str | None = None
) -> Iterator[Serving]:
    service = Service(session, parse_policy(policy), limits or Limits())
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    config = uvicorn.Config(
        create_app(service, key), host="127.0.0.1", port=port, log_level="warning"
    )
    server = uvicorn.Server(config)
    service.worker.start()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    try:
        yield Serving(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join(20)
