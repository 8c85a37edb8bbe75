"""Figures of a running server in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """Counts what happens; a registry of its own, so that several servers fit in one process."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"d2sd_{name}", words, labels, registry=registry)

        self._requests = counter("requests", "API requests by the status they ended with", "status")
        self._tokens = counter("generated_tokens", "Tokens emitted")
        self._steps = counter("steps", "Target passes")
        self._seconds = counter("stage_seconds", "Seconds by stage of a step", "stage")
        self.watch("queue", "Requests that wait", waiting)
        self.watch("acceptance_length", "Tokens per target pass so far", self._length)
        self._emitted = self._passes = 0

    def watch(self, name: str, words: str, value: Callable[[], float]) -> None:
        """A gauge that shows what `value` gives at the time."""
        Gauge(f"d2sd_{name}", words, registry=self._registry).set_function(value)

    def ended(self, status: int) -> None:
        self._requests.labels(str(status)).inc()

    def stepped(self, tokens: int) -> None:
        """One more step, and the tokens it emitted."""
        self._tokens.inc(tokens)
        self._steps.inc()
        self._emitted, self._passes = self._emitted + tokens, self._passes + 1

    def staged(self, stages: Mapping[str, float]) -> None:
        """Seconds by stage, of all steps of an answer."""
        for stage, seconds in stages.items():
            self._seconds.labels(stage).inc(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _length(self) -> float:
        return self._emitted / self._passes if self._passes else 0.0
