"""The target's answers that drafters learn from: reading them, and splitting off validation."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal, cast

from d2sd.answers.packed import SUFFIX, packed_lines


@dataclass(frozen=True)
class Response:
    """One answer of the target, as token ids; `temperature` 0 means greedy.

    `kind` is what the prompt is about: "chat", or the suite of an evaluation prompt.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    temperature: float
    kind: str = ""

    @property
    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.response_ids)

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def read_responses(
    paths: str | Path | Sequence[str | Path],
    max_length: int = 512,
    broken: Literal["stop", "skip"] = "stop",
    tell: Callable[[str], None] = lambda sentence: None,
) -> list[Response]:
    """Responses of JSONL files (plain or .gz) and packed ones, in the files' order.

    They are cut to `max_length` tokens.

    A response without a prompt or with fewer than two answer tokens teaches nothing and is left
    out. `tell` hears one sentence for each file of which something was skipped or left out.
    Raises ValueError naming the file and the line that can't be read, unless `broken` is "skip".
    """
    names = [paths] if isinstance(paths, str | Path) else paths
    responses: list[Response] = []
    for path in map(Path, names):
        skipped: list[int] = []
        short = 0
        for number, found in enumerate(_read(path), 1):
            if isinstance(found, str):
                if broken == "stop":
                    raise ValueError(f"{path}, line {number}: {found}")
                skipped.append(number)
            elif found is not None:
                room = max(max_length - len(found.prompt_ids), 0)
                cut = replace(found, response_ids=found.response_ids[:room])
                usable = bool(cut.prompt_ids) and len(cut.response_ids) > 1
                responses += [cut] * usable
                short += not usable
        _report(path, skipped, short, tell)
    if not responses:
        raise ValueError(f"{' and '.join(map(str, names))} holds no responses")
    return responses


def _report(path: Path, skipped: Sequence[int], short: int, tell: Callable[[str], None]) -> None:
    remarks = []
    if skipped:
        some = ", ".join(map(str, skipped[:5])) + (", …" if len(skipped) > 5 else "")
        remarks.append(f"skipped {len(skipped)} broken lines ({some})")
    if short:
        remarks.append(f"left out {short} responses too short to learn from once cut")
    if remarks:
        tell(f"{path}: {' and '.join(remarks)}")


def _read(path: Path) -> Iterator[Response | str | None]:
    """Per line the response, or what is wrong with the line; None for an empty one."""
    if path.suffix == SUFFIX:
        yield from _unpacked(path)
        return
    with _opened(path) as lines:
        while True:
            try:
                line = next(lines, None)
            except (EOFError, OSError, zlib.error) as error:
                yield f"the file can't be read from here on ({error})"
                return
            if line is None:
                return
            yield _parsed(line) if line.strip() else None


def _unpacked(path: Path) -> Iterator[Response | str]:
    try:
        for row in packed_lines(path):
            yield _response(row)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def _response(row: dict[str, Any]) -> Response:
    return Response(
        _token_ids(row, "prompt_ids"),
        _token_ids(row, "response_ids"),
        float(row.get("temperature", 0.0)),
        str(row.get("kind", "")),
    )


def _parsed(line: bytes) -> Response | str:
    try:
        return _response(json.loads(line))
    except (KeyError, TypeError, ValueError) as error:
        return (
            f"not a response ({error!r}); each line is a JSON object with prompt_ids, "
            "response_ids and temperature"
        )


def _token_ids(row: dict[str, object], name: str) -> tuple[int, ...]:
    ids = row[name]
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
        raise TypeError(f"{name} is not a list of token ids")
    return tuple(ids)


def _opened(path: Path) -> BufferedIOBase:
    try:
        if path.suffix == ".gz":
            return cast(BufferedIOBase, gzip.open(path))
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def split(responses: Sequence[Response], validation: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: every n-th response is held out.

    Other answers to a held-out prompt are in neither.
    """
    every = max(len(responses) // max(validation, 1), 2)
    held_out = range(0, len(responses), every) if validation else range(0)
    prompts = {responses[i].prompt_ids for i in held_out}
    training = [i for i, response in enumerate(responses) if response.prompt_ids not in prompts]
    return training, list(held_out)


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
