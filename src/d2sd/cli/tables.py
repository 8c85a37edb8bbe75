"""How a comparison and a verdict look, as JSON and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from rich.table import Table

from d2sd.bench.audit import Audit
from d2sd.bench.measure import Comparison, Figures
from d2sd.cli.terminal import notes, pages
from d2sd.stages import Split

Facts = Mapping[str, object]
"""Where a run comes from: see `d2sd.provenance`."""


def comparison_json(comparison: Comparison, run: Facts) -> dict[str, object]:
    """The object that `d2sd bench --json` prints."""
    splits = {name: split_json(each) for name, each in comparison.splits.items()}
    return {**asdict(comparison), "splits": splits, "run": dict(run)}


def split_json(split: Split) -> dict[str, object]:
    """Where the time of steps went. Times are in seconds and over all steps."""
    return {**asdict(split), "overhead": split.overhead}


def audit_json(verdict: Audit, run: Facts) -> dict[str, object]:
    """The object that `d2sd verify` prints."""
    return {**asdict(verdict), "run": dict(run)}


def print_comparison(comparison: Comparison, run: Facts) -> None:
    """One row per policy, the best speed in bold, and the conditions below."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold", min_width=14)
    for name in ("acceptance", "tokens/s", "× none", "median", "nodes/step", "identical"):
        table.add_column(name, justify="right")
    fastest = max(row.tokens_per_second for row in comparison.policies.values())
    for name, row in comparison.policies.items():
        style = "bold" if row.tokens_per_second == fastest else None
        table.add_row(name, *_cells(row), style=style)
    pages.print(table)
    pages.print()
    _print_splits(comparison.splits)
    tokens = max(row.new_tokens for row in comparison.policies.values())
    pages.print(
        f"\n{comparison.prompts} prompts, {tokens} tokens · {run['model']} · {run['dtype']} on "
        f"{run['device']} · {run['threads']} threads · seed {run['seed']}\n"
        "acceptance: tokens per target pass · tokens/s: decoding time, prefill excluded · "
        "median: tokens/s of the middle prompt · identical: the same tokens as none\n"
        "draft 1, draft 2, score: passes of the drafters and the target · plan: the rest of "
        "drafting · outside: the share of a step outside the passes",
        style="dim",
        soft_wrap=True,
    )


def _cells(row: Figures) -> list[str]:
    ratio = "" if row.speedup_over_none is None else f"{row.speedup_over_none:.2f}"
    return [
        f"{row.acceptance_length:.2f}",
        f"{row.tokens_per_second:.1f}",
        ratio,
        f"{row.median_tokens_per_second:.1f}",
        f"{row.nodes_per_step:.1f}",
        {True: "yes", False: "NO", None: "?"}[row.identical_to_none],
    ]


def _print_splits(splits: Mapping[str, Split]) -> None:
    """One row per policy: what a step takes and where, in milliseconds."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")  # 80 columns are enough
    table.add_column("ms a step", overflow="fold", min_width=14)
    parts = next(iter(splits.values())).seconds
    for name in ("total", *parts, "outside"):
        table.add_column(name, justify="right")
    for name, split in splits.items():
        times = (split.milliseconds(), *map(split.milliseconds, parts))
        table.add_row(name, *(f"{time:.2f}" for time in times), f"{split.overhead:.1%}")
    pages.print(table)


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
