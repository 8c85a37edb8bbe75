"""What is asked of the target, by whom it is answered, and the files that hold the prompts."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d2sd.wording import Message

Finish = Literal["stop", "length"]

Tick = Callable[[int], None]
"""Is told how many tokens have come in since the last call."""


@dataclass(frozen=True)
class Ask:
    """A prompt of a file, turn by turn; each turn follows the target's answer to the one before."""

    id: str | int
    kind: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One turn, ready to be answered. `seed` belongs to it alone; `temperature` 0 is greedy."""

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    temperature: float
    seed: int

    @property
    def text(self) -> str:
        return as_text(self.messages)


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as plain text, without any template."""
    return "\n".join(message["content"] for message in messages)


@dataclass(frozen=True)
class Answer:
    """What the target said; where `finish` is "stop", the closing end token is the last id.

    `tokenised` says that the ids were made from the text and aren't the target's own draws.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    finish: Finish
    tokenised: bool = False


class Answerer(ABC):
    """Answers questions: `batch` conversations a call, `parallel` calls at a time."""

    batch: int
    parallel: int = 1

    @abstractmethod
    def answer(self, questions: Sequence[Question], tick: Tick) -> list[Answer]:
        """An answer to each question, in their order."""

    def close(self) -> None:
        """Give up what is still being waited for in other threads."""
        return


@dataclass(frozen=True)
class Reading:
    """How prompt files are read.

    `kind` names lines that have none (None: after the file's stem), `limit` is per file, and at
    a `broken` line reading stops, or skips it and tells.
    """

    kind: str | None = None
    limit: int | None = None
    broken: str = "stop"

    def __post_init__(self) -> None:
        if self.broken not in ("stop", "skip"):
            raise ValueError(f"broken is {self.broken!r}; choose stop or skip")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; it must be 1 or more")


def read_asks(
    paths: Sequence[Path], reading: Reading, tell: Callable[[str], None] = lambda words: None
) -> list[Ask]:
    """The prompts of several JSONL files: `{"id", "kind", "prompt"}` or `{"id", "turns"}` a line.

    Raises ValueError, with file and line number, where a line is no prompt and that is fatal.
    """
    asks: list[Ask] = []
    for path in paths:
        try:
            with path.open("rb") as lines:
                asks += _asks(lines, path, reading, tell)
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read: {error.strerror}; give a JSONL file"
            ) from None
    if not asks:
        raise ValueError(
            f"{', '.join(map(str, paths))} holds no prompts; give lines like "
            '{"id": 1, "kind": "chat", "prompt": "…"}'
        )
    return asks


def _asks(
    lines: Iterable[bytes], path: Path, reading: Reading, tell: Callable[[str], None]
) -> Iterator[Ask]:
    kind, found = reading.kind or path.stem, 0
    for number, line in enumerate(lines, start=1):
        if found == reading.limit:
            return
        if not line.strip():
            continue
        try:
            ask = _ask(line, kind)
        except ValueError as error:
            if reading.broken == "stop":
                raise ValueError(
                    f"{path}, line {number} {error}; mend it or go on with --broken skip"
                ) from None
            tell(f"left out: {path}, line {number} {error}")
            continue
        found += 1
        yield ask


def _ask(line: bytes, kind: str) -> Ask:
    try:
        values = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(values, dict):
        raise ValueError("is no object")
    turns = values.get("turns", [values.get("prompt")])
    if not (isinstance(turns, list) and turns and all(_is_text(turn) for turn in turns)):
        raise ValueError('has no text under "prompt" and no list of texts under "turns"')
    name, kind = values.get("id"), values.get("kind", kind)
    if not isinstance(name, str | int):
        raise ValueError('has no "id"')
    if not isinstance(kind, str):
        raise ValueError('has a "kind" that is no text')
    return Ask(name, kind, tuple(turns))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
