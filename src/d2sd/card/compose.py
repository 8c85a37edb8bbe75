"""A drafter's model card, written from files: what no file says is called not measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from d2sd.card.curves import Point, Training, fit_trend
from d2sd.card.evaluation_part import add_evaluation
from d2sd.card.page import Page, front_matter
from d2sd.card.plots import draw_learning
from d2sd.card.subject import DrafterFacts, Subject

TAGS = ("speculative-decoding", "block-diffusion", "draft-model", "dflash", "d2sd")
ROLES = {
    "": "a drafter",
    "first": "pass 1: sees the anchor alone",
    "second": "pass 2: sees the anchor and a kept prefix",
    "one": "both passes, one network",
}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def card(subject: Subject) -> Page:
    """The card as a page. The same files give the same page."""
    page = Page()
    page.add(_front_matter(subject))
    target = subject.target
    page.add(
        f"# Drafters for {target}" if target else "# Drafters",
        "" if target else "Their target: not recorded.",
        "Block-diffusion drafters for lossless speculative decoding with d2sd: they guess, the "
        "target checks, and only the target's own draws are emitted. What they change is how many "
        "passes the target takes.",
    )
    _add_drafters(page, subject)
    _add_data(page, subject.recipe)
    _add_training(page, subject)
    page.add("## Acceptance")
    for number, evaluation in enumerate(subject.evaluations, 1):
        add_evaluation(page, evaluation, str(number) if len(subject.evaluations) > 1 else "")
    if not subject.evaluations:
        page.add("Not measured: no JSON of `d2sd evaluate` was given.")
    if subject.wording.notes:
        page.add(subject.wording.notes.strip())
    _add_origin(page, subject)
    return page


def _front_matter(subject: Subject) -> str:
    target, licence = subject.target, subject.wording.licence
    named = subject.wording.base_model or (target if HUB_ID.fullmatch(target or "") else None)
    return front_matter(
        {
            **({"license": licence} if licence else {}),
            **({"base_model": named} if named else {}),
            "library_name": "d2sd",
            "tags": TAGS,
        }
    )


def _add_drafters(page: Page, subject: Subject) -> None:
    facts = {name: _facts(name, drafter) for name, drafter in subject.drafters.items()}
    rows = list(next(iter(facts.values())))
    page.table(
        ["", *(name or "drafter" for name in facts)],
        [[row, *(of[row] for of in facts.values())] for row in rows],
    )
    options = "--drafter FOLDER"
    if {"first", "second"} <= facts.keys():
        options = "--drafter FOLDER/first --second-drafter FOLDER/second"
    elif "" not in facts:
        options = f"--drafter FOLDER/{next(iter(facts))}"
    page.add(f"```sh\nd2sd generate PROMPT --model {subject.target or 'TARGET'} {options}\n```")
    licence = subject.wording.licence
    page.add(f"Licence: {licence}." if licence else "Licence: not stated.")


def _facts(name: str, drafter: DrafterFacts) -> dict[str, str]:
    config = drafter.config
    net = config.network
    fitted = [
        f"at {temperature:g}: {', '.join(f'{each:.2f}' for each in divisors)}"
        for temperature, divisors in sorted(config.temperatures.items())
    ]
    return {
        "role": ROLES[name],
        "layout": f"{drafter.layout}, {drafter.dtype}, {drafter.size / 1e6:.1f} MB",
        "layers × width × feed-forward": (
            f"{net.num_hidden_layers} × {net.hidden_size} × {net.intermediate_size}, "
            f"{net.num_attention_heads} query heads, {net.num_key_value_heads} key heads"
        ),
        "parameters": f"{drafter.parameters / 1e6:.1f} M",
        "block size": str(config.block_size),
        "features": f"outputs of the target's layers {', '.join(map(str, config.taps))}",
        "draft vocabulary": f"{config.draft_vocab_size} of {config.vocab_size} tokens",
        "mask token": str(config.mask_token_id),
        "temperatures by decoding temperature": "; ".join(fitted) or "not fitted",
    }


def _add_data(page: Page, recipe: Mapping[str, Any] | None) -> None:
    page.add("## Data")
    responses = (recipe or {}).get("responses")
    if recipe is None or not isinstance(responses, dict):
        page.add("Not recorded: there is no recipe.json that says what was learned from.")
        return
    page.add(
        f"{responses['count']} answers of the target (SHA-256 of their tokens "
        f"`{str(responses['sha256'])[:16]}`), {recipe.get('validation', 0)} of them held out; "
        f"longer ones cut after {recipe.get('max_length', 'an unknown number of')} tokens, prompt "
        "included."
    )


def _add_training(page: Page, subject: Subject) -> None:
    page.add("## Training")
    training = subject.training
    if training is None or not training.stages:
        page.add("Not measured: there is no training.jsonl.")
    else:
        page.table(
            [
                "stage",
                "steps",
                "slots learned from",
                "time",
                "best held-out acceptance length",
                "at",
            ],
            [_stage_row(name, points) for name, points in training.stages.items()],
        )
        page.add(
            "Slots are masked positions, counted each time they are trained on. The acceptance "
            "length is that of the held-out greedy answers by teacher forcing, of both drafters "
            "together where a second one is trained."
        )
        page.picture(
            "learning",
            f"Learning curves. {' '.join(_predictions(training))}",
            partial(draw_learning, training.stages),
        )
    if subject.recipe is not None:
        settings = {key: value for key, value in subject.recipe.items() if key != "responses"}
        page.add(
            "<details><summary>recipe.json</summary>",
            f"```json\n{json.dumps(settings, indent=2)}\n```",
            "</details>",
        )


def _stage_row(name: str, points: Sequence[Point]) -> list[str]:
    last = points[-1]
    known = [point for point in points if point.acceptance is not None]
    best = max(known, key=lambda point: point.acceptance or 0.0, default=None)
    return [
        name,
        str(last.step),
        f"{last.positions / 1e6:.1f} M",
        "not measured" if last.seconds is None else f"{last.seconds / 60:.0f} min",
        "not measured" if best is None else f"{best.acceptance:.2f}",
        "" if best is None else f"step {best.step}",
    ]


def _predictions(training: Training) -> list[str]:
    """What the next doubling of each stage should bring, as a sentence each."""
    found = []
    for name, points in training.stages.items():
        trend = fit_trend(points)
        if trend is None:
            found.append(f"The {name} stage has too few points for a prediction.")
            continue
        rates = [point.rate for point in points if point.rate is not None]
        falling = bool(rates) and trend.points[-1].rate != max(rates)
        found.append(
            f"Predicted, not measured: twice the slots of the {name} stage give "
            f"{trend.per_doubling:+.2f} ± {trend.error:.2f} (a + b·log2(slots), least squares over "
            f"its last {len(trend.points)} points; ± one standard error of b"
            + ("; the rates fell over the last of them, which steepens b)." if falling else ").")
        )
    return found


def _add_origin(page: Page, subject: Subject) -> None:
    """Where the figures come from, file by file."""
    page.add("## Where the figures come from")
    records: dict[str, Mapping[str, Any]] = {}
    if subject.training is not None and subject.training.provenance is not None:
        records["training.jsonl"] = subject.training.provenance
    for evaluation in subject.evaluations:
        records[f"{evaluation.name}.json"] = evaluation.run
    if not records:
        page.add("Not recorded: no file given carries a provenance record.")
    for name, record in records.items():
        lines = [f"- {key}: {_plain(value)}" for key, value in record.items()]
        page.add(f"`{name}`", "\n".join(lines))


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"`{' '.join(map(str, value))}`"
    return "none" if value is None else str(value)
