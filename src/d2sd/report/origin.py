"""Where a bench's figures come from, and what its words mean."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from d2sd.bench.results import Results
from d2sd.report.document import NOTHING, Block, Bullets, Code, Table, Text

FIRST = ("model", "dtype", "quantize", "device", "threads", "date", "commit", "versions")
"""The facts of a run that come first, in this order; the settings follow."""
APART = ("command", "study")

MEANINGS: tuple[Block, ...] = (
    Bullets(
        (
            "**Acceptance length** is the number of tokens emitted per pass of the target, the "
            "bonus included; plain decoding has 1. It weighs every token alike; the *mean of "
            "answers' own* weighs every answer alike.",
            "**Speed-up** is over `none`, plain decoding through the same target in the same run. "
            "Tokens/s leave the prefill out, unless a column says otherwise.",
            "**Intervals** are 95 %, by bootstrap over prompts. Whether two contenders differ is "
            "judged by their ratio, for which the same prompts are drawn on both sides; single "
            "suites, where no ratio is kept, by whether the two intervals overlap. They say what "
            "the choice of prompts can do, not how much the machine's speed moves.",
            "**Nodes a step** are the drafted tokens that the target scores, without the anchor.",
            "**Identical answers** are the turns whose tokens are those of `none` in the same run. "
            "In half precision near-ties may swap.",
            "**Other programs** run their own arithmetic, named beside them, and their speed-up "
            "is over our plain decoding.",
        )
    ),
)


def origin(results: Results) -> tuple[Block, ...]:
    """The command, and all facts and settings of the run."""
    facts = {**results.run, **{k: v for k, v in results.settings.items() if k not in results.run}}
    ordered = [*(key for key in FIRST if key in facts), *(key for key in facts if key not in FIRST)]
    rows = [(_title(key), _said(facts[key])) for key in ordered if key not in APART]
    command = command_line(results)
    return (
        *((Code(command),) if command else ()),
        Table(("fact", "value"), tuple(rows)),
    )


def command_line(results: Results) -> str:
    """The command as it is typed; empty where the run didn't keep it."""
    return shlex.join(map(str, results.run.get("command", ())))


def summary(results: Results) -> Text:
    """The run in one sentence."""
    facts = {**results.settings, **results.run}
    where = [str(facts[key]) for key in ("model", "dtype", "device") if facts.get(key)]
    if "threads" in facts:
        where.append(f"{facts['threads']} threads")
    counts = {section.prompts for section in results.sections}
    suites = len({section.suite for section in results.sections})
    span = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    what = f"{suites} {'suite' if suites == 1 else 'suites'}, {span} prompts each"
    limit = facts.get("max_new_tokens")
    if limit is not None:
        what += f", at most {limit} new tokens"
    return Text(f"{', '.join(where)}: {what}. Measured {facts.get('date', NOTHING)}.")


def _title(key: str) -> str:
    return key.replace("_", " ")


def _said(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_said, value)) or "none"
    return str(value)
