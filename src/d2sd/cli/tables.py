"""How a split and a verdict look, as JSON and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.table import Table

from d2sd.bench.audit import Audit
from d2sd.cli.terminal import notes
from d2sd.stages import Split

Facts = Mapping[str, object]
"""Where a run comes from: see `d2sd.provenance`."""


def split_json(split: Split) -> dict[str, object]:
    """Where the time of steps went. Times are in seconds and over all steps."""
    return {**asdict(split), "overhead": split.overhead}


def audit_json(verdict: Audit, run: Facts) -> dict[str, object]:
    """The object that `d2sd verify` prints."""
    return {**asdict(verdict), "run": dict(run)}


def print_split(split: Split) -> None:
    """One row per part of a step, on standard error."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("part of a step")
    table.add_column("ms", justify="right")
    table.add_column("%", justify="right")
    for name, seconds in split.seconds.items():
        share = 100 * seconds / split.total
        table.add_row(name, f"{split.milliseconds(name):.2f}", f"{share:.1f}")
    table.add_row("all", f"{split.milliseconds():.2f}", "100.0", style="bold")
    notes.print()
    notes.print(table)
    notes.print(f"outside the passes: {split.overhead:.1%}")


def print_verdict(verdict: Audit) -> None:
    """The verdict in words, on standard error."""
    where = f"{verdict.tokens} tokens of {verdict.prompts} prompts with {verdict.policy}"
    argmax = (
        f"each is the target's argmax or a near-tie ({verdict.near_ties} near-ties, at most "
        f"{verdict.largest_gap:.3g} below the top logit; {verdict.near_tie_ulp} ulp are allowed)"
    )
    words = {
        "argmax": argmax,
        "replay": "all are what plain decoding says with the same seed",
    }
    checks = "; ".join(words[check] for check in verdict.checks)
    if verdict.lossless:
        notes.print(f"[bold green]lossless[/]: {where}; {checks}")
        return
    first = verdict.violations[0]
    notes.print(
        f"[bold red]not lossless[/]: {len(verdict.violations)} of {where} are wrong; the first is "
        f"token {first.position + 1} of prompt {first.prompt}: {first.reason} "
        f"({first.expected} instead of {first.token})"
    )
