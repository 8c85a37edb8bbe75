"""The HTTP surface: OpenAI's paths, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import hmac
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from d2sd import __version__
from d2sd.serve.edge import Edge
from d2sd.serve.errors import ApiError, on_api_error, on_http_error, on_invalid
from d2sd.serve.responding import Exchange
from d2sd.serve.schema import Asked, ChatAsked, Error, TextAsked
from d2sd.serve.service import Service
from d2sd.serve.wire import Wire

PAGE = Path(__file__).parent / "page"
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Error} for code in (400, 401, 404, 408, 413, 429, 500, 503)
}


def create_app(service: Service, api_key: str | None = None) -> FastAPI:
    """The app over a service, which ends with it; whoever serves it starts the worker."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="d2sd", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_http_error)
    app.add_middleware(Edge, metrics=service.metrics)
    _add_api(app, service, _guard(api_key))
    _add_watching(app, service)
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    _publish(app)
    return app


def _publish(app: FastAPI) -> None:
    """Take FastAPI's 422 out of the published document: what is invalid gets 400 here."""
    document = app.openapi()  # kept by the app
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)


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
            "policies": list(service.policies),
            "policy": service.policy.text,
            "plain_tokens_per_second": service.plain_speed,
            "max_tokens": service.limits.max_tokens,
        },
    }


async def _complete(service: Service, asked: Asked, request: Request) -> Response:
    if asked.model != service.session.name:
        raise ApiError(
            404,
            f"the model {asked.model!r} is not here; {service.session.name} is",
            "model_not_found",
            "model",
        )
    chat = isinstance(asked, ChatAsked)
    client = request.client.host if request.client else ""
    started = await service.start(asked, asked.user or client)
    name = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    wire = Wire(name, int(time.time()), asked.model, chat, service.session.tokenizer)
    return await Exchange(service, request, asked, wire, started).response()
