"""The HTTP server around the app: signals, and an end that leaves nothing half said."""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from d2sd.serve.logs import leave_values_out
from d2sd.serve.service import Service

LAST_WORDS = 5
"""Seconds that connections have left once the worker has ended, to send what it said last."""
IDLE = 75
"""Seconds that an idle connection stays open: longer than clients keep theirs (5 in httpx and so in
OpenAI's client), or a request may meet the end of its connection."""
LOGGERS = ("uvicorn.error", "asyncio", "d2sd.serve.worker")


class Ending:
    """What signals do. At the first the queue closes: new requests are refused, accepted answered.

    After `grace` seconds what is left is failed in words. Then connections end and the server
    with them. A second signal ends the process where it stands.
    """

    def __init__(self, server: uvicorn.Server, service: Service, grace: float) -> None:
        self._server, self._service, self._grace = server, service, grace

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._server.should_exit:
            os._exit(128 + number)
        self._server.should_exit = True
        stop = self._service.worker.stop
        threading.Thread(target=stop, args=(self._grace,), daemon=True).start()


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket bound to an address; port 0 takes a free one. ValueError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as door:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"{host}:{port} cannot be listened on ({error}); choose another --host or --port"
            ) from None
        yield door


def serve(app: FastAPI, service: Service, door: socket.socket, grace: float) -> None:
    """Serve at a bound socket until a signal comes; called in the main thread, where signals come.

    The model works in this thread and HTTP in another. This thread loaded the model, so OpenMP's
    threads are waiting for it already. Behind any other thread OpenMP would start as many again,
    find more than the machine has cores, and put them to sleep after every loop: on two cores that
    made a pass 2.5 times as slow.
    """
    leave_values_out(*LOGGERS)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses and paths are nobody's business
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=math.ceil(grace) + LAST_WORDS,
        server_header=False,
    )
    server = uvicorn.Server(config)

    def listen() -> None:
        try:
            server.run(sockets=[door])
        finally:
            service.close()
            if service.worker.is_alive:
                os._exit(0)  # a pass that takes this long cannot be interrupted; nobody waits

    http = threading.Thread(target=listen, name="d2sd-http")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, Ending(server, service, grace))
    http.start()
    service.worker.work()
    http.join()
