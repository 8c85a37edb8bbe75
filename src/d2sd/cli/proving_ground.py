"""`d2sd proving-ground`: a small target with its drafters, where methods can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2sd.cli.options import grouped, option

if TYPE_CHECKING:
    from d2sd.train.small_target import Exchange

GROUND = "Proving ground"


@dataclass(frozen=True)
class GroundOptions:
    """Where everything goes, and how long it takes."""

    out: Annotated[
        Path,
        option(
            "--out",
            GROUND,
            "OUT/target, OUT/responses.jsonl and OUT/drafters; a killed run goes on from there.",
            "OUT",
        ),
    ] = Path("runs/proving-ground")
    prompts: Annotated[
        Path | None,
        option(
            "--prompts",
            GROUND,
            "What the target is asked for its drafters: JSONL, as in d2sd regenerate. The "
            "narrower, the longer drafts get. Default: the prompts of the answers.",
            "FILE.jsonl",
        ),
    ] = None
    target_steps: Annotated[
        int | None, option("--target-steps", GROUND, "Steps of the small target.", "N")
    ] = None
    changes: Annotated[
        list[str] | None,
        option("--set", GROUND, "A setting of the drafters' recipe, as in d2sd train.", "NAME=V"),
    ] = None
    threads: Annotated[
        int | None, option("--threads", GROUND, "CPU threads; all cores if not given.", "N")
    ] = None


@grouped
def proving_ground(
    responses: Annotated[
        Path,
        typer.Argument(
            help="Answers with their text, as d2sd regenerate writes them: JSONL (or .jsonl.gz) "
            "with prompt and response a line. The target learns to write like them.",
        ),
    ],
    options: GroundOptions,
) -> None:
    """Train a small target on these answers, let it answer the prompts, train its drafters.

    Acceptance is long there within an hour or two on a CPU, so methods can be compared. Speed
    figures from it say nothing: its passes cost next to nothing.
    """
    from dataclasses import replace

    import torch

    from d2sd.cli.progress import meter
    from d2sd.cli.terminal import note
    from d2sd.train.proving_ground import read_exchanges, train_target
    from d2sd.train.small_target import SmallTarget

    if options.threads:
        torch.set_num_threads(options.threads)
    exchanges = read_exchanges(responses)
    shape = SmallTarget()
    shape = replace(shape, steps=options.target_steps or shape.steps)
    with meter("small target") as move:
        target = train_target(shape, exchanges, options.out / "target", move, note)
    prompts = options.prompts or _prompts(exchanges, options.out / "prompts.jsonl")
    for command in _commands(options, target, prompts):
        _run(command)


def _prompts(exchanges: Sequence[Exchange], path: Path) -> Path:
    lines = [
        json.dumps({"id": number, "kind": "ground", "prompt": exchange.prompt})
        for number, exchange in enumerate(exchanges)
    ]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def _commands(options: GroundOptions, target: Path, prompts: Path) -> list[list[str]]:
    """What is left of the path: the same commands that serve any other target."""
    answers, out = str(options.out / "responses.jsonl"), options.out
    threads = ["--threads", str(options.threads)] if options.threads else []
    changes = [word for change in options.changes or () for word in ("--set", change)]
    # short: greedy answers of so small a model end in loops, which any drafter foresees
    draws = ["--temperatures", "0,0,0.8", "--max-new-tokens", "160"]
    model = ["--model", str(target)]
    places = ["--work", str(out / "work"), "--out", str(out / "drafters")]
    recipe = ["--recipe", "proving-ground", *changes]
    return [
        ["regenerate", str(prompts), *model, "--out", answers, *draws, *threads],
        ["train", answers, *model, *recipe, *places, *threads],
    ]


def _run(command: list[str]) -> None:
    from d2sd.cli import run
    from d2sd.cli.terminal import note

    note(f"d2sd {' '.join(command)}")
    if code := run(command):
        raise typer.Exit(code)
