"""`d2sd regenerate`: the target answers prompts, so that drafters learn from its own draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2sd.cli.options import MODEL, OUTPUT, PROMPTS, SAMPLING, Json, grouped, option

if TYPE_CHECKING:
    from d2sd.answers.regenerate import Progress, Summary

ENDPOINT = "Endpoint"
NOTE_EVERY = 60.0
"""Seconds between two lines about the progress where there is no terminal for a bar."""


@dataclass(frozen=True)
class AskedOptions:
    """Which prompts are answered, and how they are worded."""

    out: Annotated[
        Path,
        option(
            "--out",
            OUTPUT,
            "The response file: .jsonl, .jsonl.gz, or .packed, which holds token ids alone, about "
            "a byte a token. OUT.json says where it comes from. A killed run goes on when the same "
            "command is given again.",
            "OUT",
        ),
    ]
    kind: Annotated[
        str | None,
        option("--kind", PROMPTS, "Kind of lines that name none; default: the file's stem.", "K"),
    ] = None
    limit: Annotated[
        int | None, option("--limit", PROMPTS, "Only the first N prompts of each file.", "N")
    ] = None
    broken: Annotated[
        str,
        option("--broken", PROMPTS, "What a broken line does: stop, or skip with a note.", "DO"),
    ] = "stop"
    raw: Annotated[
        bool, option("--raw", PROMPTS, "Continue prompts as plain text, without chat template.")
    ] = False
    system: Annotated[
        str | None, option("--system", PROMPTS, "A system prompt before each one.", "TEXT")
    ] = None
    max_prompt_tokens: Annotated[
        int | None,
        option("--max-prompt-tokens", PROMPTS, "Leave out prompts longer than this.", "N"),
    ] = None
    minutes: Annotated[
        float | None,
        option(
            "--minutes",
            OUTPUT,
            "Stop after about this long; the same command goes on from there.",
            "N",
        ),
    ] = None


@dataclass(frozen=True)
class DrawingOptions:
    """How answers are drawn."""

    max_new_tokens: Annotated[
        int, option("--max-new-tokens", SAMPLING, "End each answer after this many tokens.", "N")
    ] = 320
    temperatures: Annotated[
        str,
        option(
            "--temperatures",
            SAMPLING,
            'Taken in turn, prompt by prompt; 0 is greedy: "0,0,0.8".',
            "LIST",
        ),
    ] = "0"
    top_p: Annotated[
        float,
        option("--top-p", SAMPLING, "Draw from the most probable tokens up to this mass.", "P"),
    ] = 1.0
    seed: Annotated[
        int, option("--seed", SAMPLING, "An answer follows from it and the prompt's id.", "N")
    ] = 0


@dataclass(frozen=True)
class TargetOptions:
    """Which weights, where, in which precision."""

    model: Annotated[
        str,
        option("--model", MODEL, "The target: a name, a folder, or a Hugging Face id.", "M"),
    ] = "smollm2-135m"
    dtype: Annotated[
        str,
        option(
            "--dtype",
            MODEL,
            "bfloat16, as training reads the target; float32; or auto: float32 on the CPU.",
            "TYPE",
        ),
    ] = "bfloat16"
    device: Annotated[
        str, option("--device", MODEL, "cpu, cuda, or auto: the GPU where there is one.", "NAME")
    ] = "auto"
    threads: Annotated[
        int | None, option("--threads", MODEL, "CPU threads; all cores if not given.", "N")
    ] = None
    batch: Annotated[
        int | None,
        option("--batch", MODEL, "Answers at a time; default: 32 on the CPU, 256 on a GPU.", "N"),
    ] = None


@dataclass(frozen=True)
class EndpointOptions:
    """A server that answers in place of a model loaded here."""

    endpoint: Annotated[
        str | None,
        option(
            "--endpoint",
            ENDPOINT,
            "Let an OpenAI-compatible server answer, such as vLLM at http://localhost:8000/v1; "
            "--model is then read for its tokenizer only.",
            "URL",
        ),
    ] = None
    endpoint_model: Annotated[
        str | None,
        option("--endpoint-model", ENDPOINT, "The server's name of the target.", "NAME"),
    ] = None
    api_key_env: Annotated[
        str | None,
        option("--api-key-env", ENDPOINT, "The environment variable that holds the key.", "VAR"),
    ] = None
    concurrency: Annotated[int, option("--concurrency", ENDPOINT, "Requests at a time.", "N")] = 8


@grouped
def regenerate(
    prompts: Annotated[
        list[Path],
        typer.Argument(
            help='JSONL files: {"id", "kind", "prompt"} or {"id", "turns": […]} a line.',
            metavar="PROMPTS.jsonl...",
        ),
    ],
    asked: AskedOptions,
    drawing: DrawingOptions,
    target: TargetOptions,
    server: EndpointOptions,
    json: Json = False,
) -> None:
    """Let the target answer prompts, so that drafters learn from its own draws.

    Writes a response file: token ids of prompt and answer, a line for each turn.
    """
    from d2sd.answers.conversations import Conversations
    from d2sd.answers.questions import Reading, read_asks
    from d2sd.answers.regenerate import begin, digest_of
    from d2sd.answers.regenerate import regenerate as answer_all
    from d2sd.cli.sources import source_of
    from d2sd.cli.terminal import note
    from d2sd.provenance import provenance

    asks = read_asks(prompts, Reading(asked.kind, asked.limit, asked.broken), note)
    source = source_of(asked, drawing, target, server)
    settings = {"digest of the prompts": digest_of(asks), **source.settings}
    begin(asked.out, settings, provenance(source.device, drawing.seed))
    conversations = Conversations(asks, source.answerer, source.wording, source.draws)
    started = time.monotonic()
    seconds = float("inf") if asked.minutes is None else 60 * asked.minutes
    with _bar() as hear:
        summary = answer_all(conversations, asked.out, hear, seconds)
    _show(asked.out, summary, time.monotonic() - started, json)


def _show(out: Path, summary: Summary, seconds: float, json: bool) -> None:
    from dataclasses import asdict

    from d2sd.cli.terminal import note, print_json

    if json:
        print_json({"out": str(out), **asdict(summary), "seconds": round(seconds, 1)})
    else:
        note(
            f"{out}: {summary.answers} answers, {summary.tokens} tokens, {summary.stop} "
            f"ended by themselves, {summary.length} cut at the limit, {summary.left_out} turns "
            f"left out as too long; {seconds:.0f} s"
            + (f"; {summary.waiting} prompts wait for another run" if summary.waiting else "")
        )


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """Answers done, tokens a second and the time left: a bar, or a line now and then."""
    from rich import progress as rich

    from d2sd.cli.terminal import note, notes

    columns = (
        rich.TextColumn("[dim]answers"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("[dim]{task.fields[speed]:.0f} tokens/s"),
        rich.TimeRemainingColumn(),
    )
    task: rich.TaskID | None = None
    started = noted = time.monotonic()
    first = 0

    def hear(progress: Progress) -> None:
        nonlocal task, noted, first
        now = time.monotonic()
        speed = progress.tokens / max(now - started, 1e-9)
        if task is None:
            first = progress.done
            task = bar.add_task("", total=progress.total, completed=first, speed=0.0)
        bar.update(task, completed=progress.done, speed=speed)
        if not notes.is_terminal and now - noted > NOTE_EVERY:
            noted, made = now, progress.done - first
            left = (progress.total - progress.done) * (now - started) / made / 60 if made else None
            note(
                f"{progress.done} of {progress.total} answers, {speed:.0f} tokens/s"
                + (f", {left:.0f} min left" if left is not None else "")
            )

    with rich.Progress(*columns, console=notes, disable=not notes.is_terminal) as bar:
        yield hear
