"""A request's jobs turned into its response: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from d2sd.serve.errors import ApiError, error_body
from d2sd.serve.jobs import LEFT, Failed, Finished, Progress
from d2sd.serve.schema import Asked
from d2sd.serve.service import Service, Started
from d2sd.serve.trace import traced
from d2sd.serve.wire import DONE, Choice, Wire, event


class EventStream(StreamingResponse):
    """Server-sent events; `ended` is called however the response ends, also before it began."""

    def __init__(self, events: AsyncIterator[str], ended: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


@dataclass(frozen=True)
class Exchange:
    """One request whose choices are in the queue or at work."""

    service: Service
    request: Request
    asked: Asked
    wire: Wire
    started: list[Started]

    async def response(self) -> Response:
        if self.asked.stream:
            self._outcome(LEFT)  # unless the end is reached
            return EventStream(self._streamed(), self._cancel)
        return await self._whole()

    async def _whole(self) -> Response:
        """Every choice to its end; a client that leaves meanwhile frees the worker."""
        answers = asyncio.ensure_future(self._all_finished())
        leaving = asyncio.ensure_future(self._left())
        try:
            await asyncio.wait({answers, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                self._outcome(LEFT)
                return Response(status_code=LEFT.status)  # nobody reads it
            return JSONResponse(self.wire.whole(answers.result(), self._wants_chances))
        finally:
            answers.cancel()
            leaving.cancel()
            self._cancel()

    @property
    def _wants_chances(self) -> bool:
        return self.started[0].job.rows is not None

    async def _all_finished(self) -> list[Choice]:
        return [await self._finished(place, one) for place, one in enumerate(self.started)]

    async def _finished(self, place: int, started: Started) -> Choice:
        choice = Choice(place, started.prompt)
        async for one in started.events():
            if isinstance(one, Failed):
                raise ApiError(one.status, one.message, one.code)
            if isinstance(one, Finished):
                choice.finished = one
            else:
                choice.add(one)
        return choice

    async def _left(self) -> None:
        """Returns when the client leaves: after the body nothing else comes from it."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def _streamed(self) -> AsyncIterator[str]:
        choices = [Choice(place, one.prompt) for place, one in enumerate(self.started)]
        for choice, one in zip(choices, self.started, strict=True):
            yield event(self.wire.chunk(choice.index, "", first=True))
            async for happened in one.events():
                if isinstance(happened, Failed):
                    self._outcome(happened)
                    yield event(error_body(happened.status, happened.message, happened.code))
                    return
                yield event(self._chunk(choice, happened))
        options = self.asked.stream_options
        if options is not None and options.include_usage:
            yield event(self.wire.usage_chunk(choices))
        self._outcome(None)
        yield DONE

    def _chunk(self, choice: Choice, happened: Progress | Finished) -> dict[str, object]:
        if isinstance(happened, Finished):
            choice.finished = happened
            return self.wire.end(choice.index, happened)
        values = self.wire.chunk(choice.index, happened.piece.text)
        if happened.chances:
            pairs = list(zip(happened.piece.tokens, happened.chances, strict=False))
            values["choices"][0]["logprobs"] = self.wire.logprobs(pairs, choice.said)
        if self.asked.trace:
            values["d2sd"] = traced(happened, self.wire.tokenizer)
        choice.said += len(happened.piece.text)
        return values

    def _outcome(self, failed: Failed | None) -> None:
        """For the count of requests: what came of a stream whose response began as 200."""
        self.request.state.outcome = None if failed is None else failed.status

    def _cancel(self) -> None:
        """Whatever of the request still waits or is at work ends; nothing where all is done."""
        for one in self.started:
            self.service.cancel(one.job)
