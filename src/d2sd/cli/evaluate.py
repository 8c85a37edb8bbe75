"""`d2sd evaluate`: acceptance on stored answers, without decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from d2sd.cli.options import OUTPUT, Json, ModelOptions, Policies, grouped, option

if TYPE_CHECKING:
    from d2sd.bench.evaluation import Fit
    from d2sd.cli.evaluating import Result
    from d2sd.train.responses import Response

ANSWERS, CALIBRATION = "Answers", "Calibration"


@dataclass(frozen=True)
class ReplayOptions:
    """Which of the file's answers are replayed, how much of each, with what."""

    policies: Policies = "block,dual,best-first:budget=64,merged:budget=64"
    limit: Annotated[
        int | None,
        option("--limit", ANSWERS, "The first N of each kind and decoding temperature.", "N"),
    ] = None
    max_tokens: Annotated[
        int | None, option("--max-tokens", ANSWERS, "Cut each answer after N tokens.", "N")
    ] = None
    held_out: Annotated[
        int | None,
        option(
            "--held-out",
            ANSWERS,
            "Of a file that was trained on, the answers that training held out; N as there.",
            "N",
        ),
    ] = None
    threads: Annotated[
        int | None, option("--threads", ANSWERS, "CPU threads; all cores if not given.", "N")
    ] = None


@dataclass(frozen=True)
class CalibrationOptions:
    """What is done about the drafters' temperatures."""

    fit: Annotated[
        bool,
        option(
            "--fit",
            CALIBRATION,
            "Fit temperatures on these answers and write them into the drafters' config.json; "
            "what is reported besides is measured without any.",
        ),
    ] = False
    uncalibrated: Annotated[
        bool, option("--uncalibrated", CALIBRATION, "Leave out the drafters' own temperatures.")
    ] = False


@dataclass(frozen=True)
class ReportOptions:
    """Where the result goes."""

    out: Annotated[
        Path | None,
        option(
            "--out",
            OUTPUT,
            "Write the JSON here; a killed run goes on from OUT.partial.jsonl.",
            "OUT",
        ),
    ] = None
    as_json: Json = False


@grouped
def evaluate(
    responses: Annotated[
        Path,
        typer.Argument(
            help="The target's answers: JSONL (or .jsonl.gz) with prompt_ids, response_ids, "
            "temperature and kind a line."
        ),
    ],
    model: ModelOptions,
    replaying: ReplayOptions,
    calibration: CalibrationOptions,
    report: ReportOptions,
) -> None:
    """What policies would gain on answers that the target has given already.

    Acceptance length, depth by depth and kind by kind, what the trees hold, and whether the
    drafters' confidences are honest. The drafters work as in decoding; the target reads each
    answer once and decodes nothing, so it is quick. Greedy and sampled answers are told apart.
    """
    import torch

    from d2sd.bench.evaluation import Evaluation, KeptReplays
    from d2sd.cli.evaluating import drafter_folders, evaluated
    from d2sd.cli.opening import opened
    from d2sd.drafters.policies import parse_policies

    if replaying.threads:
        torch.set_num_threads(replaying.threads)
    chosen = tuple(parse_policies(replaying.policies))
    folders = drafter_folders(model) if calibration.fit else None
    evaluation = Evaluation(selected(responses, replaying), chosen, curves=calibration.fit)
    partial = report.out and report.out.with_name(report.out.name + ".partial.jsonl")
    kept = KeptReplays(partial)
    # a fit that starts from no temperatures can be repeated: what it wrote doesn't change it
    uncalibrated = calibration.uncalibrated or calibration.fit
    result = evaluated(opened(model, chosen, exact=True), evaluation, kept, uncalibrated)
    if folders and result.fit:
        write_fit(result.fit, folders)
    _report(result, str(responses), report)
    kept.remove()


def _report(result: Result, responses: str, options: ReportOptions) -> None:
    from d2sd.cli.evaluating import print_evaluation
    from d2sd.cli.terminal import print_json
    from d2sd.journal import write_record

    values = {"responses": responses, **result.as_json()}
    if options.out:
        write_record(options.out, values)
    if options.as_json:
        print_json(values)
    else:
        print_evaluation(result)


def selected(path: Path, options: ReplayOptions) -> tuple[Response, ...]:
    """The file's answers as the options want them."""
    import sys
    from dataclasses import replace

    from d2sd.train.responses import read_responses, split

    for name, value in (("--limit", options.limit), ("--max-tokens", options.max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be 1 or more")
    if options.held_out is None:
        chosen = read_responses(path, max_length=sys.maxsize)
    else:  # cut as training cuts them, so that it counts the same answers
        trained = read_responses(path)
        chosen = [trained[i] for i in split(trained, options.held_out)[1]]
    seen: dict[tuple[str, float], int] = {}
    kept = []
    for response in chosen:
        group = (response.kind, response.temperature)
        seen[group] = seen.get(group, 0) + 1
        if options.limit is None or seen[group] <= options.limit:
            kept.append(replace(response, response_ids=response.response_ids[: options.max_tokens]))
    return tuple(kept)


def write_fit(fit: Fit, folders: tuple[Path, ...]) -> None:
    """Fitted temperatures into the folders of the first and of the second drafter."""
    from d2sd.cli.terminal import note
    from d2sd.train.calibrate import write_temperatures

    for folder, fitted in zip(folders, (fit.first, fit.second), strict=False):
        write_temperatures(folder, fitted)
    note(f"wrote temperatures into {' and '.join(map(str, folders))}")
