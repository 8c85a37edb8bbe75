"""The part of a model card that tells what `d2sd evaluate` found."""

from __future__ import annotations

from functools import partial

from d2sd.card.findings import Change, EvaluationFile, Finding, Length, Told
from d2sd.card.page import Page
from d2sd.card.plots import draw_boundaries, draw_depths, draw_reliability, draw_suites
from d2sd.card.subject import plain_name


def add_evaluation(page: Page, evaluation: EvaluationFile, number: str) -> None:
    """Every decoding temperature of one file; `number` tells its pictures from another file's."""
    for finding in evaluation.findings:
        mark = f"{number}-t{finding.temperature:g}".removeprefix("-")
        page.add(f"### {_heading(evaluation, finding)}")
        _add_lengths(page, finding, mark)
        _add_honesty(page, finding, mark)
    if evaluation.changes:
        _add_changes(page, evaluation.changes)


def _heading(evaluation: EvaluationFile, finding: Finding) -> str:
    how = "greedy" if finding.temperature == 0 else f"temperature {finding.temperature:g}"
    of = evaluation.responses or evaluation.name
    return f"{plain_name(str(evaluation.run.get('model')))}, {how}: {of.rsplit('/', 1)[-1]}"


def _add_lengths(page: Page, finding: Finding, mark: str) -> None:
    policies = finding.policies
    rows = [
        [suite, str(count), *(_length(of.suites[suite]) for of in policies.values())]
        for suite, count in finding.answers.items()
    ]
    total = str(sum(finding.answers.values()))
    all_answers = [f"**{_length(of.all)}**" for of in policies.values()]
    means = [f"{of.mean_over_suites:.2f}" for of in policies.values()]
    nodes = [f"{of.nodes_per_step:.1f}" for of in policies.values()]
    page.table(
        ["acceptance length", "answers", *(f"`{name}`" for name in policies)],
        [
            *rows,
            ["**all answers**", total, *all_answers],
            ["mean over suites", "", *means],
            ["drafted nodes a step", "", *nodes],
        ],
    )
    page.add(
        f"Tokens per target pass on {finding.tokens} tokens of stored answers, replayed without "
        "decoding; ± half of the 95 % interval over answers."
    )
    if len(finding.answers) > 1:
        page.picture(
            f"suites-{mark}",
            "Acceptance length by suite. Plain decoding is 1; lines are 95 % intervals.",
            partial(draw_suites, {name: of.bars for name, of in policies.items()}),
        )
    page.picture(
        f"depths-{mark}",
        "Acceptance by depth. Depths that fewer than 20 steps reached are left out.",
        partial(draw_depths, {name: of.depths for name, of in policies.items()}),
    )


def _add_honesty(page: Page, finding: Finding, mark: str) -> None:
    told = {name: of.told for name, of in finding.policies.items() if of.told and of.told.first}
    if not told:
        page.add("Whether the confidences are honest: not measured.")
        return
    page.table(
        ["expected calibration error", "first pass", "second pass", "boundary posterior r(i)"],
        [[f"`{name}`", *_errors(of)] for name, of in told.items() if of is not None],
    )
    name = next((name for name, of in told.items() if of and of.second), next(iter(told)))
    shown = told[name]
    assert shown is not None
    panels = {
        "confidence, first pass": shown.first,
        "confidence, second pass": shown.second,
        "boundary posterior r(i)": shown.posterior,
    }
    page.picture(
        f"reliability-{mark}",
        f"What the drafters of {name} say and what comes true. Dots on the line are honest; their "
        "area is how often it was said.",
        partial(draw_reliability, {key: bins for key, bins in panels.items() if bins is not None}),
    )
    if shown.held:
        page.picture(
            f"boundaries-{mark}",
            f"Where the first pass of {name} breaks. Measured, and as r(i) expects; the last place "
            "is the whole block.",
            partial(draw_boundaries, shown.said, shown.held),
        )


def _add_changes(page: Page, changes: tuple[Change, ...]) -> None:
    """Temperatures fitted on one half of the answers, judged on the other."""
    page.add("### Fitted temperatures, judged on answers they were not fitted on")
    rows = []
    for change in changes:
        errors = ["not measured"] * 2
        if change.errors is not None:
            errors = [f"{100 * error:.1f} %" for error in change.errors]
        before, after = change.lengths
        row = [f"`{change.policy}`", f"{change.temperature:g}", f"{before:.3f}", f"{after:.3f}"]
        rows.append([*row, *errors])
    page.table(
        [
            "policy",
            "decoding temperature",
            "acceptance length before",
            "after",
            "calibration error of pass 1 before",
            "after",
        ],
        rows,
    )


def _errors(told: Told | None) -> list[str]:
    parts = (told.first, told.second, told.posterior) if told else ()
    return ["not measured" if each is None else f"{100 * each.error:.1f} %" for each in parts]


def _length(length: Length) -> str:
    return f"{length.mean:.2f} ± {(length.high - length.low) / 2:.2f}"
