"""What every request passes first: a bound on its body, headers of safety, and the count."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d2sd.serve.metrics import Metrics

MOST_BYTES = 4 * 2**20
"""The longest body of a request."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Edge:
    """ASGI middleware around the app.

    A request of the API counts by the status it ended with: the response's, or what a stream set
    as `outcome` in the request's state, because its response began as 200 whatever came after.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["outcome"] = None
        status = 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self._app(scope, _bounded(receive), sent)
        finally:
            if scope["path"].startswith("/v1/"):
                self._metrics.ended(state["outcome"] or status)


def _bounded(receive: Receive) -> Receive:
    """`receive`, until the body is longer than it may be."""
    size = 0

    async def received() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
            raise HTTPException(413, f"the body is longer than {MOST_BYTES} bytes; shorten it")
        return message

    return received
