"""`d2sd train`: a target's drafters, from its responses."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2sd.cli.options import MODEL, grouped, option

if TYPE_CHECKING:
    from d2sd.cli.training import Drafters
    from d2sd.train.material import Material
    from d2sd.train.run import Company

TRAINING, RECIPE, DATA = "Training", "Recipe", "Data"


@dataclass(frozen=True)
class TrainingOptions:
    """What is trained, from where, and where everything goes."""

    out: Annotated[
        Path,
        option("--out", TRAINING, "Where the drafters go, each in a folder of its name.", "OUT"),
    ]
    work: Annotated[
        Path,
        option(
            "--work",
            TRAINING,
            "Checkpoints and the log; a killed run goes on from there with the same command.",
            "WORK",
        ),
    ] = Path("runs/train")
    stage: Annotated[
        str,
        option(
            "--stage",
            TRAINING,
            "first, second, both (one after the other), one: a drafter for both passes, or eagle: "
            "an EAGLE-3 head.",
            "STAGE",
        ),
    ] = "both"
    first: Annotated[
        str | None,
        option(
            "--first",
            TRAINING,
            "The first drafter that --stage second works with (default: the one in WORK), or whose "
            "taps and draft vocabulary the others take.",
            "PATH|ID",
        ),
    ] = None
    minutes: Annotated[
        float | None,
        option(
            "--minutes",
            TRAINING,
            "Stop after about this long, with a checkpoint; the same command goes on from there. "
            "For one process.",
            "N",
        ),
    ] = None
    start: Annotated[
        str | None,
        option(
            "--start",
            TRAINING,
            "Begin with this drafter's weights. Default: the target's last layers; the second "
            "drafter begins with the first.",
            "PATH|ID",
        ),
    ] = None


@dataclass(frozen=True)
class RecipeOptions:
    """Shape and schedule: a recipe by name, changed by a file, changed by --set."""

    recipe: Annotated[
        str | None,
        option(
            "--recipe",
            RECIPE,
            "default (any target), smollm2-135m or smollm2-135m-gpu. Default: the one of the "
            "target's name.",
            "NAME",
        ),
    ] = None
    config: Annotated[
        Path | None,
        option("--config", RECIPE, "A YAML file of settings that the recipe gets.", "FILE.yaml"),
    ] = None
    changes: Annotated[
        list[str],
        option(
            "--set",
            RECIPE,
            "One more setting, such as first.steps=2000; may be given again. A name that doesn't "
            "exist lists the ones that do.",
            "NAME=VALUE",
        ),
    ] = field(default_factory=list)


@dataclass(frozen=True)
class DataOptions:
    """How responses are read."""

    features: Annotated[
        str,
        option(
            "--features",
            DATA,
            "online: a pass of the target for every batch; stored: on disk in WORK, read often.",
            "HOW",
        ),
    ] = "online"
    broken: Annotated[
        str,
        option("--broken", DATA, "What a broken line does: stop, or skip with a note.", "DO"),
    ] = "stop"


@dataclass(frozen=True)
class PlaceOptions:
    """Which target, and where it runs."""

    model: Annotated[
        str,
        option("--model", MODEL, "The target: a name, a folder, or a Hugging Face id.", "M"),
    ] = "smollm2-135m"
    device: Annotated[
        str, option("--device", MODEL, "cpu, cuda, or auto: the GPU where there is one.", "NAME")
    ] = "auto"
    threads: Annotated[
        int | None, option("--threads", MODEL, "CPU threads; all cores if not given.", "N")
    ] = None


@grouped
def train(
    responses: Annotated[
        list[Path],
        typer.Argument(
            help="The target's answers, as d2sd regenerate writes them: packed, or JSONL (or "
            ".jsonl.gz) with prompt_ids, response_ids and temperature a line.",
        ),
    ],
    options: TrainingOptions,
    recipe: RecipeOptions,
    data: DataOptions,
    place: PlaceOptions,
) -> None:
    """Train drafters for a target and write them, ready to decode with.

    WORK/training.jsonl grows with the acceptance length on held-out answers; the weights with the
    highest one are exported. Several processes, as accelerate launch or torchrun start them, share
    each batch: accelerate launch -m d2sd.cli train …
    """
    from d2sd.cli.progress import training_meter
    from d2sd.cli.terminal import note
    from d2sd.cli.training import joined, prepared, time_limit
    from d2sd.train.course import OutOfTimeError
    from d2sd.train.run import Company

    begun = time.perf_counter()
    with joined(place) as target:
        until = begun + time_limit(options.minutes, target.processes)
        material, drafters = prepared(responses, options, recipe, data, target)
        try:
            with training_meter(target.processes.is_first) as hear:
                company = Company(target.processes, hear, target.tell, until)
                names = _trained(material, drafters, options, company)
        except OutOfTimeError as error:
            note(f"the time is over: {error}; the same command goes on from there")
            return
        if target.processes.is_first:
            note(_farewell(options.out, names))


def _trained(
    material: Material, drafters: Drafters, options: TrainingOptions, company: Company
) -> list[str]:
    """Train and export; the names of what was written."""
    from d2sd.train.eagle import EagleTraining
    from d2sd.train.run import DrafterTraining

    if options.stage == "eagle":
        head = EagleTraining(material, options.work, company)
        head.export_head(head.train_head(), options.out)
        return ["eagle"]
    blocks = DrafterTraining(material, options.work, company)
    networks = blocks.train(options.stage, drafters.first, drafters.start)
    blocks.export(networks, options.out)
    return list(networks)


def _farewell(out: Path, names: list[str]) -> str:
    """What was written, and how to try it."""
    folders = [str(out / name) for name in names]
    flags = ["--second-drafter" if name == "second" else "--drafter" for name in names]
    given = " ".join(f"{flag} {folder}" for flag, folder in zip(flags, folders, strict=True))
    if names == ["second"]:
        given = f"--drafter FIRST {given}"
    given += " --policy eagle-tree" if names == ["eagle"] else ""
    return f"wrote {' and '.join(folders)}; try: d2sd generate PROMPT {given}"
