"""Answers by a server that speaks OpenAI's protocol, such as vLLM's."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from d2sd.answers.questions import Answer, Answerer, Finish, Question, Tick

SEEDS = 2**31
"""Servers take seeds below this."""

WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}
UNKNOWN_OPTION = {400, 422}

LONGEST_PAUSE = 60.0
"""Seconds; whatever longer pause a server asks for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and how patient we are with it.

    `url` ends in /v1. After a failure that may pass, the n-th new try waits `wait` · 2ⁿ seconds,
    or as long as the server asks for. `key` is sent and never shown.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    parallel: int = 8
    tries: int = 7
    wait: float = 1.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the endpoint {self.url!r} is no web address; give one like "
                "http://localhost:8000/v1"
            )
        if self.parallel < 1:
            raise ValueError(f"concurrency is {self.parallel}; it must be 1 or more")


def key_from(variable: str | None) -> str | None:
    """The key in an environment variable. Raises ValueError where that isn't set."""
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise ValueError(f"the environment variable {variable} for the API key is not set")
    return key


class RefusedError(ValueError):
    """What a server said in the end, in one sentence; `code` is HTTP's where it answered."""

    def __init__(self, words: str, code: int | None = None) -> None:
        super().__init__(words)
        self.code = code


class Connection:
    """Requests to an endpoint, repeated while their failure may pass."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._closed = Event()

    def close(self) -> None:
        """No new tries from now on."""
        self._closed.set()

    def ask(self, path: str, values: Mapping[str, object] | None = None) -> Any:
        """The JSON that the server answers to a POST of `values`, or to a GET without them.

        Raises RefusedError when there is none in the end.
        """
        tried = 0
        while True:
            tried += 1
            try:
                return self._once(path, values)
            except urllib.error.HTTPError as error:
                with error:
                    words, code = self._said(error), error.code
                passing, pause = code in WORTH_ANOTHER_TRY, error.headers.get("Retry-After")
            except (OSError, HTTPException) as error:  # no connection, or it broke, or no answer
                words, code = str(getattr(error, "reason", error)) or type(error).__name__, None
                passing, pause = True, None
            if not passing or tried == self._endpoint.tries or self._closed.is_set():
                times = f" ({tried} tries)" if tried > 1 else ""
                raise RefusedError(f"{self._endpoint.url}{path} failed{times}: {words}", code)
            self._closed.wait(_pause(pause, self._endpoint.wait * 2 ** (tried - 1)))

    def stream(self, path: str, values: Mapping[str, object]) -> Generator[Any, None, None]:
        """The server-sent events that answer a POST of `values`, as JSON, up to the last one.

        Closing the iterator closes the connection. Tried once: what was shown cannot be taken
        back. Raises RefusedError when the stream fails or ends too early.
        """
        where = f"{self._endpoint.url}{path}"
        try:
            with self._opened(path, values) as reply:
                for line in reply:
                    words = line.decode(errors="replace").strip()
                    if words == "data: [DONE]":
                        return
                    if words.startswith("data:"):
                        yield json.loads(words.removeprefix("data:"))
        except urllib.error.HTTPError as error:
            with error:
                raise RefusedError(f"{where} failed: {self._said(error)}", error.code) from None
        except (OSError, HTTPException) as error:
            words = str(getattr(error, "reason", error)) or type(error).__name__
            raise RefusedError(f"{where} failed: {words}") from None
        except json.JSONDecodeError:
            raise RefusedError(f"{where} streams something else than JSON") from None
        raise RefusedError(f"{where} failed: the stream ended before its last event")

    def _opened(self, path: str, values: Mapping[str, object] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._endpoint.key:
            headers["Authorization"] = f"Bearer {self._endpoint.key}"
        body = None if values is None else json.dumps(values).encode()
        request = urllib.request.Request(self._endpoint.url.rstrip("/") + path, body, headers)
        return urllib.request.urlopen(request, timeout=self._endpoint.timeout)

    def _once(self, path: str, values: Mapping[str, object] | None) -> Any:
        with self._opened(path, values) as reply:
            text = reply.read()
        try:
            return json.loads(text)
        except ValueError:
            raise RefusedError(
                f"{self._endpoint.url}{path} answers something else than JSON; is "
                "it the address of an OpenAI-compatible server?"
            ) from None

    def _said(self, error: urllib.error.HTTPError) -> str:
        """The server's reason, shortened, without the key should it repeat it."""
        try:
            text = error.read(4096).decode(errors="replace")
        except (OSError, HTTPException):
            text = ""
        if self._endpoint.key:
            text = text.replace(self._endpoint.key, "…")
        return " ".join(f"{error.code} {error.reason} {text}".split())[:300]


def new_text(event: Mapping[str, Any]) -> str:
    """The new text of a chat's event. Raises RefusedError where it says that the server failed."""
    if "error" in event:
        raise RefusedError(str(event["error"].get("message", event["error"])))
    return "".join(one.get("delta", {}).get("content") or "" for one in event.get("choices", ()))


def _pause(asked: str | None, ours: float) -> float:
    try:
        return min(float(asked), LONGEST_PAUSE) if asked else ours
    except ValueError:  # a date
        return ours


def served_model(connection: Connection, option: str) -> str:
    """The one model that a server has.

    Raises ValueError where it has several or doesn't say; `option` is what chooses one then.
    """
    listed = connection.ask("/models")
    try:
        names = [model["id"] for model in listed["data"]]
    except (KeyError, TypeError):
        names = []
    if len(names) != 1:
        raise ValueError(
            f"the endpoint serves {', '.join(names) or 'no model that it names'}; choose one with "
            f"{option}"
        )
    return str(names[0])


@dataclass(frozen=True)
class Asking:
    """What every request says besides its prompt; `raw` continues plain text."""

    model: str
    max_new_tokens: int
    top_p: float = 1.0
    raw: bool = False


class EndpointAnswerer(Answerer):
    """A server's answers, one conversation a request, `endpoint.parallel` of them at a time.

    Token ids are the server's own where it gives them (vLLM's `return_token_ids`). Otherwise the
    answer's text is tokenised, and said to be.
    """

    batch = 1

    def __init__(
        self, endpoint: Endpoint, asking: Asking, tokenizer: Any, stop_tokens: frozenset[int]
    ) -> None:
        self.parallel = endpoint.parallel
        self._connection = Connection(endpoint)
        self._asking = asking
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens
        end = tokenizer.eos_token_id
        self._closing = [end] if end is not None else sorted(stop_tokens)[:1]
        self._gives_ids = True

    def close(self) -> None:
        self._connection.close()

    def answer(self, questions: Sequence[Question], tick: Tick) -> list[Answer]:
        """The answers, in order. Raises ValueError when the server fails for good."""
        answers = []
        for question in questions:
            answers.append(self._read(question, self._replied(question)))
            tick(len(answers[-1].response_ids))
        return answers

    def _replied(self, question: Question) -> Any:
        asking = self._asking
        values: dict[str, object] = {
            "model": asking.model,
            "max_tokens": asking.max_new_tokens,
            "temperature": question.temperature,
            "top_p": asking.top_p,
            "seed": question.seed % SEEDS,
        }
        if asking.raw:
            path, values["prompt"] = "/completions", question.text
        else:
            path, values["messages"] = "/chat/completions", list(question.messages)
        if not self._gives_ids:
            return self._connection.ask(path, values)
        try:
            return self._connection.ask(path, {**values, "return_token_ids": True})
        except RefusedError as error:
            if error.code not in UNKNOWN_OPTION:
                raise
        reply = self._connection.ask(path, values)
        self._gives_ids = False  # the option was what it refused
        return reply

    def _read(self, question: Question, reply: Any) -> Answer:
        try:
            choice = reply["choices"][0]
            text = choice["text"] if self._asking.raw else choice["message"]["content"]
            finish: Finish = "stop" if choice["finish_reason"] == "stop" else "length"
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                "the endpoint's answer has no choices with a text and a finish_reason; is it an "
                "OpenAI-compatible server?"
            ) from None
        text = text or ""
        given = choice.get("token_ids")
        ids = list(given or self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if finish == "stop" and not (ids and ids[-1] in self._stop_tokens):
            ids += self._closing
        read = choice.get("prompt_token_ids") or reply.get("prompt_token_ids")
        prompt_ids = tuple(read or question.prompt_ids)
        return Answer(prompt_ids, tuple(ids), text, finish, tokenised=not given)
