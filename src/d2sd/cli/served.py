"""The conversation of `d2sd chat --server`: whoever answers speaks OpenAI's protocol."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from d2sd.answers.endpoint import Connection, new_text
from d2sd.cli.talking import Conversation, Show


def base_url(server: str) -> str:
    """Where the API of a server is: as given, or under /v1 where only the server is named."""
    parts = urlsplit(server)
    return server if parts.path.strip("/") else f"{server.rstrip('/')}/v1"


class ServedConversation(Conversation):
    """Every turn sends all messages; the server finds what it has read before by itself.

    `values` is what every request says besides: the model, how tokens are drawn.
    """

    def __init__(
        self, connection: Connection, values: Mapping[str, object], system: str | None
    ) -> None:
        super().__init__(system)
        self._connection, self._values = connection, values

    def turn(self, text: str, show: Show) -> str:
        asked, said = self._asked(text), ""
        usage: dict[str, Any] = {}
        stopped = False
        start = time.perf_counter()
        request = {
            **self._values,
            "messages": asked,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with closing(self._connection.stream("/chat/completions", request)) as events:
            for event in events:
                usage = event.get("usage") or usage
                piece = new_text(event)
                said += piece
                if piece and show(piece) is True:
                    stopped = True
                    break
        self._keep(asked, said)
        return " · ".join(_figures(usage, time.perf_counter() - start, stopped))


def _figures(usage: Mapping[str, Any], seconds: float, stopped: bool) -> Iterator[str]:
    if stopped:
        yield "stopped"
    if tokens := usage.get("completion_tokens"):
        yield f"{tokens} tokens"
        yield f"{tokens / seconds:.1f} tokens/s with the time to the first"
    if length := usage.get("acceptance_length"):  # not every server's
        yield f"acceptance length {length:.2f}"
    yield f"{seconds:.2f} s"
