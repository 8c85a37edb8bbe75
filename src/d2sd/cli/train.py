"""`d2sd train`: both drafters for a target, from its responses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2sd.cli.options import grouped, option

if TYPE_CHECKING:
    from d2sd.train.loop import StepReport
    from d2sd.train.run import Listener

TRAINING = "Training"


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained on, for how long, and where everything goes."""

    out: Annotated[
        Path, option("--out", TRAINING, "Where the drafters go: OUT/first, OUT/second.", "OUT")
    ]
    work: Annotated[
        Path,
        option(
            "--work",
            TRAINING,
            "Features, checkpoints and the learning curve; a killed run goes on from there.",
            "WORK",
        ),
    ] = Path("runs/train")
    model: Annotated[str, option("--model", TRAINING, "The target.", "M")] = "smollm2-135m"
    recipe: Annotated[str, option("--recipe", TRAINING, "Shape and schedule.", "NAME")] = (
        "smollm2-135m"
    )
    first_steps: Annotated[
        int | None, option("--first-steps", TRAINING, "Steps of the first drafter.", "N")
    ] = None
    second_steps: Annotated[
        int | None, option("--second-steps", TRAINING, "Steps of the second drafter.", "N")
    ] = None
    threads: Annotated[
        int | None, option("--threads", TRAINING, "CPU threads; all cores if not given.", "N")
    ] = None


@grouped
def train(
    responses: Annotated[
        Path,
        typer.Argument(
            help="The target's answers: JSONL (or .jsonl.gz) with prompt_ids, response_ids and "
            "temperature a line.",
        ),
    ],
    options: TrainingOptions,
) -> None:
    """Train both drafters for a target and write them, ready to decode with.

    The second drafter starts from the first one's weights. WORK/curve.jsonl grows with the
    acceptance length on held-out answers.
    """
    import torch

    from d2sd.cli.terminal import note
    from d2sd.models.resolve import resolve
    from d2sd.target.load import load_model
    from d2sd.train.recipes import find_recipe
    from d2sd.train.run import DrafterTraining

    recipe = find_recipe(options.recipe).with_steps(options.first_steps, options.second_steps)
    if options.threads:
        torch.set_num_threads(options.threads)
    target = load_model(resolve(options.model, note), torch.bfloat16).eval()
    run = DrafterTraining(recipe, target, responses, options.work)
    with _bar("features of the target") as move:
        store = run.store(move)
    with _training_bar("first drafter", recipe.first.steps) as hear:
        first = run.train_first(store, hear)
    with _training_bar("second drafter", recipe.second.steps) as hear:
        second = run.train_second(store, first, hear)
    run.export(store, {"first": first, "second": second}, options.out)
    note(
        f"wrote {options.out / 'first'} and {options.out / 'second'}; try: d2sd generate PROMPT "
        f"--drafter {options.out / 'first'} --second-drafter {options.out / 'second'}"
    )


@contextmanager
def _bar(words: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error with the time left; call it with `completed`, `total`, `words`."""
    from rich.progress import Progress, TimeRemainingColumn

    from d2sd.cli.terminal import notes

    columns = (*Progress.get_default_columns()[:3], TimeRemainingColumn())
    with Progress(*columns, console=notes) as progress:
        task = progress.add_task(words, total=None)

        def move(completed: int, total: int, words: str = words) -> None:
            progress.update(task, completed=completed, total=total, description=words)

        yield move


@contextmanager
def _training_bar(words: str, steps: int) -> Iterator[Listener]:
    """The same, with the loss smoothed over some fifty steps."""
    smooth: float | None = None
    with _bar(words) as move:

        def hear(stage: str, done: StepReport) -> None:
            nonlocal smooth
            smooth = done.loss if smooth is None else 0.98 * smooth + 0.02 * done.loss
            move(done.step, steps, f"{words}, loss {smooth:.3f}")

        yield hear
