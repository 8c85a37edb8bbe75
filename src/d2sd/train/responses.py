"""The target's answers that drafters learn from: reading them, and splitting off validation."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast


@dataclass(frozen=True)
class Response:
    """One answer of the target, as token ids; `temperature` 0 means greedy."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.response_ids)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def read_responses(path: str | Path, max_length: int = 512) -> list[Response]:
    """Responses of a JSONL file (plain or .gz), cut to `max_length` tokens.

    Raises ValueError naming the file and the line when one can't be read.
    """
    path = Path(path)
    responses = []
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                prompt = tuple(row["prompt_ids"])
                answer = tuple(row["response_ids"])[: max_length - len(prompt)]
                temperature = float(row.get("temperature", 0.0))
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a response ({error!r}); each line is a JSON "
                    "object with prompt_ids, response_ids and temperature"
                ) from None
            if prompt and len(answer) > 1:
                responses.append(Response(prompt, answer, temperature))
    if not responses:
        raise ValueError(f"{path} holds no responses")
    return responses


def _opened(path: Path) -> IO[str]:
    try:
        if path.suffix == ".gz":
            return cast(IO[str], gzip.open(path, "rt"))
        return path.open()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def split(responses: Sequence[Response], validation: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: every n-th response is held out."""
    every = max(len(responses) // max(validation, 1), 2)
    held_out = set(range(0, len(responses), every)) if validation else set()
    return [i for i in range(len(responses)) if i not in held_out], sorted(held_out)


def frequent_tokens(responses: Sequence[Response], size: int) -> list[int]:
    """The `size` tokens that answers use most, in id order: the draft vocabulary."""
    counts = Counter(token for response in responses for token in response.response_ids)
    return sorted(token for token, _ in counts.most_common(size))


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices grouped so that a batch padded to its longest holds at most `tokens` tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[index] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
