"""The HTTP surface: OpenAI's paths, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from d2sd import __version__
from d2sd.drafters.policies import POLICIES
from d2sd.serve.errors import (
    ApiError,
    error_body,
    on_api_error,
    on_http_error,
    on_invalid,
)
from d2sd.serve.jobs import Failed, Finished, Progress
from d2sd.serve.schema import Asked, ChatAsked, Error, TextAsked
from d2sd.serve.service import Service, Started
from d2sd.serve.trace import traced
from d2sd.serve.wire import DONE, Choice, Wire, event

PAGE = Path(__file__).parent / "page"
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Error} for code in (400, 401, 404, 408, 413, 429, 500, 503)
}


def create_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The app over a service; its worker starts and stops with the app."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await asyncio.to_thread(service.worker.stop, 0.0)

    app = FastAPI(title="d2sd", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_http_error)
    _add_api(app, service, _guard(api_key))
    _add_watching(app, service)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")

    @app.middleware("http")
    async def headers(request: Request, call: Callable[[Request], Any]) -> Response:
        response: Response = await call(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        service.metrics.ended(response.status_code)
        return response

    return app


def _guard(api_key: str | None) -> Callable[[Request], None]:
    """Lets those in who know the key; everyone where there is none."""

    def check(request: Request) -> None:
        if api_key is None:
            return
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(401, "the API key is missing or wrong", "invalid_api_key")

    return check


def _add_watching(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=ERRORS)
    async def health() -> JSONResponse:
        alive = service.worker.is_alive
        state = {"status": "ok" if alive else "down", "queue": len(service.queue)}
        return JSONResponse(state, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_api(app: FastAPI, service: Service, guard: Callable[[Request], None]) -> None:
    guarded = [Depends(guard)]

    @app.get("/v1/models", dependencies=guarded, responses=ERRORS)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.post("/v1/chat/completions", dependencies=guarded, responses=ERRORS, response_model=None)
    async def chat(asked: ChatAsked, request: Request) -> Response:
        return await _complete(service, asked, request)

    @app.post("/v1/completions", dependencies=guarded, responses=ERRORS, response_model=None)
    async def completions(asked: TextAsked, request: Request) -> Response:
        return await _complete(service, asked, request)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.session.name,
        "object": "model",
        "created": 0,
        "owned_by": "d2sd",
        "d2sd": {
            "policies": list(POLICIES),
            "policy": service.policy.text,
            "plain_tokens_per_second": service.plain_speed,
            "max_tokens": service.limits.max_tokens,
        },
    }


async def _complete(service: Service, asked: Asked, request: Request) -> Response:
    if asked.model != service.session.name:
        raise ApiError(
            404, f"the model {asked.model!r} is not here; {service.session.name} is",
            "model_not_found", "model",
        )
    chat = isinstance(asked, ChatAsked)
    client = request.client.host if request.client else ""
    started = service.start(asked, asked.user or client)
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    wire = Wire(name, int(time.time()), asked.model, chat, service.session.tokenizer)
    if asked.stream:
        return StreamingResponse(_streamed(wire, asked, started), media_type="text/event-stream")
    return await _whole(wire, asked, started, request)


async def _whole(
    wire: Wire, asked: Asked, started: list[Started], request: Request
) -> JSONResponse:
    """Every choice to its end; a client that leaves meanwhile frees the worker."""
    watch = asyncio.create_task(_gone(request, started))
    try:
        choices = [await _finished(place, one) for place, one in enumerate(started)]
    finally:
        watch.cancel()
        _cancel(started)
    with_chances = started[0].job.rows is not None
    return JSONResponse(wire.whole(choices, with_chances))


async def _finished(place: int, started: Started) -> Choice:
    choice = Choice(place)
    async for one in started.running.events():
        if isinstance(one, Failed):
            raise ApiError(one.status, one.message, one.code)
        if isinstance(one, Finished):
            choice.finished = one
        else:
            choice.add(one)
    return choice


async def _gone(request: Request, started: list[Started]) -> None:
    """Waits for the client to leave."""
    with suppress(asyncio.CancelledError):
        while not await request.is_disconnected():
            await asyncio.sleep(0.1)
        _cancel(started)


def _cancel(started: list[Started]) -> None:
    for one in started:
        one.job.cancelled.set()


async def _streamed(wire: Wire, asked: Asked, started: list[Started]) -> AsyncIterator[str]:
    choices = [Choice(place) for place in range(len(started))]
    try:
        for choice, one in zip(choices, started, strict=True):
            yield event(wire.chunk(choice.index, "", first=True))
            async for happened in one.running.events():
                if isinstance(happened, Failed):
                    yield event(error_body(happened.status, happened.message, happened.code))
                    return
                if isinstance(happened, Finished):
                    choice.finished = happened
                    yield event(wire.end(choice.index, happened))
                else:
                    yield event(_chunk(wire, asked, choice, happened))
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield event(wire.usage_chunk(choices))
        yield DONE
    finally:
        _cancel(started)


def _chunk(wire: Wire, asked: Asked, choice: Choice, progress: Progress) -> dict[str, Any]:
    values = wire.chunk(choice.index, progress.piece.text)
    if progress.chances:
        pairs = list(zip(progress.piece.tokens, progress.chances, strict=False))
        values["choices"][0]["logprobs"] = wire.logprobs(pairs)
    if asked.trace:
        values["d2sd"] = traced(progress, wire.tokenizer)
    return values
