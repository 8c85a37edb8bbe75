"""Errors as OpenAI's clients understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

INVALID = "invalid_request_error"
MOST_WORDS = 1000
"""Characters of a message: what a client sent is not sent back to it at any length."""
TYPES = {401: "authentication_error", 404: INVALID, 408: "timeout", 429: "rate_limit_error"}


class ApiError(Exception):
    """An error that goes to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = error_body(status, message, code, param)


def error_body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The JSON of an error; whatever a client put into the words, it is valid Unicode."""
    kind = TYPES.get(status, INVALID if status < 500 else "server_error")
    place = None if param is None else _sendable(param)
    return {"error": {"message": _sendable(message), "type": kind, "param": place, "code": code}}


def _sendable(words: str) -> str:
    """Lone surrogates, which JSON may escape and UTF-8 cannot hold, as escapes again."""
    return words[:MOST_WORDS].encode("utf-8", "backslashreplace").decode("utf-8")


async def on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """The first thing that is wrong with a body, named by its place."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    words = str(first["msg"]).removeprefix("Value error, ")
    message = f"{place}: {words}" if place else words
    return JSONResponse(error_body(400, message, "invalid_value", place or None), 400)


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own: an unknown path, a method that isn't allowed."""
    status = getattr(error, "status_code", 500)
    headers = getattr(error, "headers", None)
    message = str(getattr(error, "detail", "") or "the server failed on this request")
    return JSONResponse(error_body(status, message), status, headers=headers)
