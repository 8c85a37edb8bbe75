"""What `d2sd evaluate` does between its options and its result, and how the result looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from d2sd.bench.acceptance import Group, groups
from d2sd.bench.evaluation import (
    Evaluation,
    Fit,
    KeptReplays,
    fit,
    replay_all,
    with_temperatures,
)
from d2sd.bench.reliability import Honesty
from d2sd.cli.options import ModelOptions
from d2sd.cli.progress import meter
from d2sd.cli.terminal import pages
from d2sd.session import Session


@dataclass(frozen=True)
class Result:
    """Everything that is reported."""

    groups: tuple[Group, ...]
    fit: Fit | None
    run: Mapping[str, object]

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints and `--out` keeps."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "fit": None if self.fit is None else asdict(self.fit),
            "run": dict(self.run),
        }


def evaluated(
    session: Session, evaluation: Evaluation, kept: KeptReplays, uncalibrated: bool
) -> Result:
    """Replay, with a bar that counts tokens; then fit, where curves are asked for."""
    if uncalibrated:
        session = replace(session, networks=with_temperatures(session.networks, None))
    tokens_in_all = evaluation.tokens * (2 if evaluation.curves else 1)
    with meter("replaying answers, tokens") as move:
        done = 0

        def on_tokens(tokens: int) -> None:
            nonlocal done
            done += tokens
            move(done, tokens_in_all)

        replays = replay_all(session, evaluation, kept, on_tokens)
        fitted = None
        if evaluation.curves:
            fitted = fit(session, evaluation, replays, kept, on_tokens)
    found = groups(evaluation.responses, replays)
    return Result(found, fitted, session.provenance(seed=0))


def drafter_folders(options: ModelOptions) -> tuple[Path, ...]:
    """The folders that fitted temperatures go to: one, where one drafter serves both passes."""
    names = [name for name in (options.drafter, options.second_drafter) if name is not None]
    if not names or not all((Path(name) / "config.json").is_file() for name in names):
        raise ValueError(
            "--fit writes into the drafters' config.json; give their folders with --drafter and "
            "--second-drafter"
        )
    return tuple(Path(name) for name in dict.fromkeys(names))


def print_evaluation(result: Result) -> None:
    """A table for each decoding temperature, honesty below, then what a fit changed."""
    for whole in (group for group in result.groups if group.honesty is not None):
        same = [group for group in result.groups if group.temperature == whole.temperature]
        pages.print(_table(same))
        for policy, found in (whole.honesty or {}).items():
            if found.first is not None:
                pages.print(f"{policy}: {_errors(found)}", style="dim", soft_wrap=True)
        pages.print()
    if result.fit is not None:
        _print_fit(result.fit)
    run = result.run
    pages.print(
        f"{run['model']} · {run['dtype']} on {run['device']} · acceptance length: tokens per "
        "target pass, ± half of its 95 % interval over prompts",
        style="dim",
        soft_wrap=True,
    )


def _table(groups: list[Group]) -> Table:
    [whole, *kinds] = groups
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"temperature {whole.temperature:g}", min_width=14)
    table.add_column("answers", justify="right")
    table.add_column("tokens", justify="right")
    for policy in whole.policies:
        table.add_column(policy, justify="right", overflow="fold", min_width=11)
    for group in [*kinds, whole]:
        table.add_row(
            group.kind or "-",
            str(group.answers),
            str(group.tokens),
            *(_length(group, policy) for policy in group.policies),
            style="bold" if group is whole else None,
        )
    nodes = [f"{row.nodes_per_step:.1f}" for row in whole.policies.values()]
    table.add_row("nodes a step", "", "", *nodes, style="dim")
    return table


def _length(group: Group, policy: str) -> str:
    found = group.policies[policy].acceptance_length
    return f"{found.mean:.2f} ± {(found.high - found.low) / 2:.2f}"


def _errors(found: Honesty) -> str:
    parts = (
        ("first pass", found.first),
        ("second pass", found.second),
        ("boundary posterior", found.posterior),
    )
    words = [
        f"{name} {judged.error:.1%} (chance {judged.chance:.1%})"
        for name, judged in parts
        if judged is not None
    ]
    return f"calibration error: {', '.join(words)}"


def _print_fit(fitted: Fit) -> None:
    """Cross-checked figures before and after, policy by policy."""
    for before, after in zip(fitted.before, fitted.after, strict=True):
        pages.print(
            f"decoding temperature {before.temperature:g}: without temperatures → with those "
            "fitted on the other half of the answers",
            style="bold",
            soft_wrap=True,
        )
        for policy, row in before.policies.items():
            then = after.policies[policy].acceptance_length.mean
            words = f"{policy}: acceptance length {row.acceptance_length.mean:.3f} → {then:.3f}"
            if before.honesty and after.honesty and before.honesty[policy].first is not None:
                words += f" · {_errors(before.honesty[policy])}"
                words += f" → {_errors(after.honesty[policy]).removeprefix('calibration error: ')}"
            pages.print(words, soft_wrap=True)
