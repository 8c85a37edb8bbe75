"""The target answers prompts into a response file, so that drafters learn from its own draws."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from d2sd.answers.conversations import Conversations, Line
from d2sd.answers.packed import SUFFIX, PackedAnswers, packed_lines
from d2sd.answers.questions import Answerer, Ask
from d2sd.journal import Journal, lines_of, write_record, written_whole

WINDOW = 16
"""Prompts of like length meet in one batch; they are looked for among so many batches."""

LOOK_AHEAD = 4
"""Batches begun at most, for each one that may run at a time."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: turns answered or left out, of so many; tokens that this run has drawn."""

    done: int
    total: int
    tokens: int


@dataclass(frozen=True)
class Summary:
    """What lies in a file; `left_out` counts turns whose prompt was too long."""

    answers: int
    tokens: int
    stop: int
    length: int
    left_out: int
    waiting: int = 0
    """Prompts that the time did not suffice for."""


def digest_of(asks: Sequence[Ask]) -> str:
    """Equal for equal lists of prompts, whatever their files are called."""
    return hashlib.sha256(json.dumps([asdict(ask) for ask in asks]).encode()).hexdigest()[:16]


def batches_of(asks: Sequence[Ask], batch: int) -> list[list[int]]:
    """Which prompts are answered together: of like length, each batch near its place in the list.

    Depends on nothing but the prompts and `batch`, so a resumed run makes the same batches.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be 1 or more")
    batches = []
    for start in range(0, len(asks), WINDOW * batch):
        window = list(range(start, min(start + WINDOW * batch, len(asks))))
        window.sort(key=lambda i: (len(asks[i].turns), sum(map(len, asks[i].turns)), i))
        batches += [window[i : i + batch] for i in range(0, len(window), batch)]
    return batches


def regenerate(
    conversations: Conversations,
    out: Path,
    hear: Callable[[Progress], None] = lambda progress: None,
    seconds: float = float("inf"),
) -> Summary:
    """Answer all prompts into the response file `out`, in their order; `begin` comes first.

    Each batch is on disk, in OUT.batches, before the next one begins. Killed at any moment, the
    same call goes on there and ends with the same file. So it does after `seconds`: no batch begins
    that would hardly end in time. A packed file needs no OUT.batches; its order is the batches'.
    """
    asks, answerer = conversations.asks, conversations.answerer
    batches = batches_of(asks, answerer.batch)
    journal = _journal(out)
    if out.exists() and not journal.path.exists():
        return _summary(asks, _lines(out, journal), range(len(asks)))
    turns = [sum(len(asks[number].turns) for number in batch) for batch in batches]
    done, tokens = sum(turns[: len(journal)]), 0
    counting = Lock()

    def tick(count: int) -> None:
        nonlocal tokens
        with counting:  # answers may come in from several threads
            tokens += count
            hear(Progress(done, sum(turns), tokens))

    tick(0)
    try:
        left = _in_time(batches[len(journal) :], seconds)
        for part in _in_order(lambda batch: conversations.held(batch, tick), left, answerer):
            done += turns[len(journal)]
            journal.append(part)
            tick(0)
    finally:
        answerer.close()
    if isinstance(journal, Journal) and len(journal) == len(batches):
        _write(out, journal, batches)
    tried = [number for batch in batches[: len(journal)] for number in batch]
    return _summary(asks, _lines(out, journal) if tried else (), tried)


def begin(out: Path, settings: Mapping[str, object], origin: Mapping[str, object]) -> None:
    """Note in OUT.json what the answers depend on and where they come from, before any is there.

    Raises ValueError where OUT was begun with other settings, or by something else.
    """
    record = out.with_name(f"{out.name}.json")
    if out.exists() and not record.exists():
        raise ValueError(
            f"{out} exists and {record.name} beside it does not: it was not made here; give "
            "another --out"
        )
    if not out.exists() and not _batches_file(out).exists():  # nothing would be lost
        out.parent.mkdir(parents=True, exist_ok=True)
        write_record(record, {"settings": settings, "provenance": origin})
        return
    try:
        begun = dict(json.loads(record.read_text())["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{record} is no record of a run; give another --out") from None
    changed = [
        f"{name} {json.dumps(begun.get(name))}, now {json.dumps(value)}"
        for name, value in json.loads(json.dumps(settings)).items()
        if begun.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{out} was begun with {'; '.join(changed)}: give the settings it was begun with, or "
            "another --out"
        )


def _journal(out: Path) -> Journal | PackedAnswers:
    return PackedAnswers(out) if out.suffix == SUFFIX else Journal(_batches_file(out))


def _in_time(batches: Iterable[list[int]], seconds: float) -> Iterator[list[int]]:
    """The batches while one more like the longest so far would end in time; one at least."""
    begun = last = time.monotonic()
    longest = 0.0
    for number, batch in enumerate(batches):
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if number and now - begun + longest > seconds:
            return
        yield batch


def _batches_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.batches")


def _in_order(
    work: Callable[[list[int]], list[list[Line]]],
    batches: Iterable[list[int]],
    answerer: Answerer,
) -> Iterator[list[list[Line]]]:
    """What `work` makes of each batch, in their order, as many at a time as may run."""
    if answerer.parallel == 1:
        yield from map(work, batches)
        return
    pool = ThreadPoolExecutor(answerer.parallel)
    begun: deque[Future[list[list[Line]]]] = deque()
    try:
        for batch in batches:
            begun.append(pool.submit(work, batch))
            if len(begun) == answerer.parallel * LOOK_AHEAD:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_prompt(parts: Iterable[list[list[Line]]], batches: Sequence[list[int]]) -> Iterator[Line]:
    """All lines in the order of the prompts; holds as many as lie between neighbours."""
    waiting: dict[int, list[Line]] = {}
    following = 0
    for batch, part in zip(batches, parts, strict=True):
        waiting.update(zip(batch, part, strict=True))
        while following in waiting:
            yield from waiting.pop(following)
            following += 1


def _write(out: Path, journal: Journal, batches: Sequence[list[int]]) -> None:
    """The response file from its journal, which goes."""
    with written_whole(out) as file:
        for line in _by_prompt(journal, batches):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    journal.path.unlink()


def _lines(out: Path, journal: Journal | PackedAnswers) -> Iterator[Line]:
    """All lines of a file, or of its journal while it isn't finished."""
    if isinstance(journal, PackedAnswers):
        return packed_lines(out)
    if out.exists():
        return map(json.loads, lines_of(out))
    return (line for part in journal for lines in part for line in lines)


def _summary(asks: Sequence[Ask], lines: Iterable[Line], tried: Sequence[int]) -> Summary:
    """Of these lines, which answer the prompts that are `tried`."""
    answers = tokens = stop = 0
    for line in lines:
        answers, tokens = answers + 1, tokens + len(line["response_ids"])
        stop += line["finish"] == "stop"
    turns = sum(len(asks[number].turns) for number in tried)
    waiting = len(asks) - len(tried)
    return Summary(answers, tokens, stop, answers - stop, turns - answers, waiting)
