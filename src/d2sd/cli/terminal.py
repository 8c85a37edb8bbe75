"""Standard output is for the answer or the one JSON object; all else goes to standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

notes = Console(stderr=True, highlight=False, soft_wrap=True)
pages = Console(highlight=False)


def note(words: str) -> None:
    """A remark on standard error."""
    notes.print(words, style="dim", markup=False)


def say(text: str) -> None:
    """A piece of the answer, at once and as it is."""
    if text:
        typer.echo(text, nl=False)


def print_json(values: Mapping[str, object]) -> None:
    """The one JSON object."""
    typer.echo(json.dumps(values, ensure_ascii=False))


@contextmanager
def progress(words: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while a terminal is there; gives the function that moves it."""
    columns = (
        TextColumn("[dim]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task(words, total=total)
        yield lambda done: bar.update(task, completed=done)
