"""What `results.json` holds: the figures of a bench, ready to be read by programs and people.

`docs/bench.md` describes the file for readers of other languages; `SCHEMA` names its version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from d2sd.journal import written_whole

SCHEMA = 1


class Interval(NamedTuple):
    """A figure, and where 95 % of it lie when prompts are drawn anew from these (bootstrap).

    Of a handful of prompts it is too narrow, of a single one it has no width at all.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Position:
    """Of `reached` steps whose tokens before `position` were right, `accepted` had it right too.

    Steps without a node so deep are left out. Positions count from 1.
    """

    position: int
    reached: int
    accepted: int


@dataclass(frozen=True)
class Row:
    """One contender on one suite at one temperature. Milliseconds are per step.

    `histogram[n]` steps emitted n tokens. `identical` counts turns whose tokens are those of
    `none` in the same run; it and the speed-ups are None where `none` didn't take part.
    `quartiles` are the first and third of the prompts' own tokens/s, around the median.
    """

    turns: int
    new_tokens: int
    steps: int
    acceptance_length: Interval
    acceptance_length_by_answer: Interval
    nodes_per_step: float
    tokens_per_second: float
    tokens_per_second_with_prefill: float
    median_tokens_per_second: float
    quartiles: tuple[float, float]
    speedup: Interval | None
    speedup_with_prefill: float | None
    identical: int | None
    histogram: tuple[int, ...]
    positions: tuple[Position, ...]
    sources: Mapping[str, int]
    stages_ms: Mapping[str, float]
    overhead: float | None


@dataclass(frozen=True)
class Mean:
    """One contender's means over suites, each suite weighing alike."""

    acceptance_length: Interval
    nodes_per_step: float
    tokens_per_second: float
    speedup: Interval | None


@dataclass(frozen=True)
class Section:
    """A suite at a temperature; rows by contender, in the order they were asked for."""

    suite: str
    temperature: float
    prompts: int
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Against:
    """One contender's mean over another's on the same prompts; `speed` of the speed-ups."""

    acceptance_length: Interval
    speed: Interval | None


@dataclass(frozen=True)
class Means:
    """All suites of one temperature together, each of `prompts` prompts or more.

    `against[ours][theirs]` is the ratio of two.
    """

    temperature: float
    suites: tuple[str, ...]
    prompts: int
    rows: Mapping[str, Mean]
    against: Mapping[str, Mapping[str, Against]] = field(default_factory=dict)


@dataclass(frozen=True)
class Bin:
    """Statements of about one probability: the mean one, and the share that came true."""

    said: float
    held: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """How honest the confidences of one pass are ("first pass", "second pass", "boundary").

    `error` is the expected calibration error; `chance` what honest statements would show too.
    """

    temperature: float
    of: str
    error: float
    chance: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Participant:
    """A contender: ours ("policy") or another program ("peer"), and with what arithmetic."""

    name: str
    kind: str
    arithmetic: str


@dataclass(frozen=True)
class Results:
    """A whole bench. `absent` maps names of contenders that could not take part to the reason.

    `settings` says how answers were made (max_new_tokens, limit, seed, thinking, sampling);
    `run` where the figures come from (`d2sd.provenance`).
    """

    study: str | None
    participants: tuple[Participant, ...]
    absent: Mapping[str, str]
    sections: tuple[Section, ...]
    means: tuple[Means, ...]
    calibration: tuple[Calibration, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Results:
        """Raises ValueError when the file is of another schema."""
        if values.get("schema") != SCHEMA:
            raise ValueError(
                f"these results have schema {values.get('schema')!r} and this d2sd reads {SCHEMA}; "
                "measure again"
            )
        return cls(
            study=values["study"],
            participants=tuple(Participant(**one) for one in values["participants"]),
            absent=values["absent"],
            sections=tuple(_section(one) for one in values["sections"]),
            means=tuple(_means(one) for one in values["means"]),
            calibration=tuple(_calibration(one) for one in values["calibration"]),
            settings=values["settings"],
            run=values["run"],
        )


def _section(values: Mapping[str, Any]) -> Section:
    return Section(**{**values, "rows": {name: _row(row) for name, row in values["rows"].items()}})


def _row(values: Mapping[str, Any]) -> Row:
    read = {
        **values,
        "acceptance_length": Interval(*values["acceptance_length"]),
        "acceptance_length_by_answer": Interval(*values["acceptance_length_by_answer"]),
        "speedup": _interval(values["speedup"]),
        "quartiles": tuple(values["quartiles"]),
        "histogram": tuple(values["histogram"]),
        "positions": tuple(Position(**one) for one in values["positions"]),
    }
    return Row(**read)


def _means(values: Mapping[str, Any]) -> Means:
    rows = {
        name: Mean(
            **{
                **row,
                "acceptance_length": Interval(*row["acceptance_length"]),
                "speedup": _interval(row["speedup"]),
            }
        )
        for name, row in values["rows"].items()
    }
    against = {
        ours: {name: _against(one) for name, one in others.items()}
        for ours, others in values["against"].items()
    }
    suites = tuple(values["suites"])
    return Means(values["temperature"], suites, values["prompts"], rows, against)


def _against(values: Mapping[str, Any]) -> Against:
    return Against(Interval(*values["acceptance_length"]), _interval(values["speed"]))


def _calibration(values: Mapping[str, Any]) -> Calibration:
    return Calibration(**{**values, "bins": tuple(Bin(**one) for one in values["bins"])})


def _interval(values: Any) -> Interval | None:
    return None if values is None else Interval(*values)


def write_results(results: Results, path: Path) -> None:
    """Write `results.json`, whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps(results.to_json(), ensure_ascii=False, indent=1) + "\n")


def read_results(path: Path) -> Results:
    """Raises ValueError, one sentence, where the file can't be read as results."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is not JSON; give a results.json of d2sd bench") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no results; give a results.json of d2sd bench")
    return Results.from_json(values)
