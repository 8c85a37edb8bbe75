"""The HTTP server around the app: signals, and an end that leaves nothing half said."""

from __future__ import annotations

import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from d2sd.serve.service import Service

LAST_WORDS = 5
"""Seconds that connections have left once the worker has ended, to send what it said last."""


class GracefulServer(uvicorn.Server):
    """At the first signal the queue closes: new requests get 503, accepted ones are answered.

    After `grace` seconds what is left is failed in words. Then connections end and the server
    with them. A second signal ends it at once, as uvicorn has it.
    """

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        closing = threading.Thread(target=self._service.worker.stop, args=(self._grace,))
        closing.start()
        super().handle_exit(sig, frame)


def serve(app: FastAPI, service: Service, host: str, port: int, grace: float) -> None:
    """Serve until a signal comes."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,  # addresses and paths are nobody's business
        timeout_graceful_shutdown=round(grace) + LAST_WORDS,
        server_header=False,
    )
    GracefulServer(config, service, grace).run()
