"""`d2sd serve` in a process of its own, and clients that take down all that comes back."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Served:
    """A server that runs; `log` gets whatever it prints."""

    process: subprocess.Popen[bytes]
    log: Path
    model: str

    @property
    def url(self) -> str:
        return re.findall(r"(http://\S+) is open", self.log.read_text())[0]

    @property
    def resident(self) -> float:
        """Its memory in MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def figure(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if re.match(rf"d2sd_{name}[ {{]", line)
        )


def started(model: Path | str, log: Path, *options: str, key: str | None = None) -> Served:
    """A server on its way: `ready` waits for it."""
    command = [sys.executable, "-m", "d2sd.cli", "serve", "--model", str(model), "--port", "0"]
    command += ["--policy", "ngram", "--dtype", "float32", "--device", "cpu", *options]
    caches = {"D2SD_CACHE": str(log.parent)} if isinstance(model, Path) else {}
    keys = {} if key is None else {"D2SD_API_KEY": key}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **caches, **keys}
        )
    return Served(process, log, str(model))


def ready(server: Served) -> Served:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.process.poll() is None, server.log.read_text()
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return server
        except (IndexError, httpx.TransportError):
            time.sleep(0.05)
    raise AssertionError(f"the server did not start: {server.log.read_text()}")


@contextmanager
def ended(server: Served) -> Iterator[Served]:
    """Whatever happens, nothing is left behind."""
    try:
        yield server
    finally:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()


@dataclass
class Heard:
    """What came back for one request; `trouble` is a connection that broke."""

    status: int = 0
    body: dict[str, object] = field(default_factory=dict)
    text: str = ""
    events: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    @property
    def error(self) -> dict[str, str]:
        """What the server said went wrong, in the body or in the stream's last event."""
        last = json.loads(self.events[-1]) if self.events else self.body
        return last["error"]

    @property
    def done(self) -> bool:
        return self.events[-1:] == ["[DONE]"] or bool(self.body.get("choices"))


def ask(url: str, values: dict[str, object], heard: Heard, key: str = "none") -> Heard:
    """One chat completion into `heard`, piece by piece, so that others can watch it grow."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps(values)  # httpx's own would refuse what no client should send
    try:
        with (
            httpx.Client(timeout=60, headers=headers) as client,
            client.stream("POST", f"{url}/v1/chat/completions", content=body) as answer,
        ):
            heard.status, heard.headers = answer.status_code, dict(answer.headers)
            if "event-stream" in answer.headers["content-type"]:
                _follow(answer, heard)
            else:
                heard.body = json.loads(answer.read())
                if answer.status_code == 200:
                    heard.text = heard.body["choices"][0]["message"]["content"]
    except httpx.TransportError as error:
        heard.trouble = repr(error)
    return heard


def _follow(answer: httpx.Response, heard: Heard) -> None:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            heard.events.append(line.removeprefix("data: "))
            if line != "data: [DONE]":
                for choice in json.loads(heard.events[-1]).get("choices", ()):
                    heard.text += choice["delta"].get("content") or ""
