"""What one contender did with one turn: the raw log that every figure of a bench is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

ROUNDED = 7
"""Decimals of a second in the log: a tenth of a microsecond."""


@dataclass(frozen=True)
class Steps:
    """The steps of one answer, target pass by target pass; every column has one entry a step.

    `emitted` tokens were kept; `accepted` drafted ones were found right, which may be more where
    the answer ended within a draft; `nodes` were drafted and scored, the anchor not counted;
    `depth` is that of the deepest; `seconds` is the time from one step's end to the next one's.
    """

    emitted: tuple[int, ...]
    accepted: tuple[int, ...]
    nodes: tuple[int, ...]
    depth: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        columns = (self.emitted, self.accepted, self.nodes, self.depth, self.seconds)
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"columns of steps differ in length: {[len(c) for c in columns]}")

    def __len__(self) -> int:
        return len(self.emitted)


@dataclass(frozen=True)
class Answer:
    """One answered turn. Times are in seconds.

    `prefill_tokens` came out of reading the prompt, before the first of `steps`: one with peers
    that read the whole prompt, none with ours, which leave its last token to the first step.
    `stages` are named parts of the steps' time, empty where a contender doesn't tell; `sources`
    counts accepted tokens by who drafted them.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    steps: Steps
    prefill_seconds: float
    prefill_tokens: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)

    @property
    def new_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def decoded(self) -> int:
        """Tokens that steps after the prefill gave."""
        return self.new_tokens - self.prefill_tokens

    @property
    def seconds(self) -> float:
        """Decoding time, prefill excluded."""
        return sum(self.steps.seconds)

    def to_json(self) -> dict[str, object]:
        """For the log; the text is left out, the token ids say it."""
        values = asdict(self)
        del values["text"]
        values["steps"]["seconds"] = [round(s, ROUNDED) for s in self.steps.seconds]
        values["prefill_seconds"] = round(self.prefill_seconds, ROUNDED)
        values["stages"] = {name: round(s, ROUNDED) for name, s in self.stages.items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Answer:
        steps = {name: tuple(column) for name, column in values["steps"].items()}
        tokens = tuple(values["token_ids"])
        return cls(text="", **{**values, "token_ids": tokens, "steps": Steps(**steps)})
