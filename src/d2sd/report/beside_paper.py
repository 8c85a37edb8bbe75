"""Tables of ours beside the papers': ratios by suite, ablations, sizes of trees and blocks."""

from __future__ import annotations

from collections.abc import Sequence

from d2sd.bench.results import Means, Results
from d2sd.report.comparisons import (
    Comparison,
    Found,
    Ratio,
    at_equal_nodes,
    compare,
    option,
    plainest,
    variants,
)
from d2sd.report.document import NOTHING, Block, Table, Text
from d2sd.report.paper import ABLATION, BLOCK_SIZES, Gain, ablation_gain, gain, suite_gain
from d2sd.report.statements import FEW
from d2sd.report.tables import sections_at

HEAD = (
    *("acceptance ×", "beyond chance", "the paper"),
    *("speed ×", "beyond chance", "the paper"),
)


def beside_paper(results: Results, means: Means) -> tuple[Block, ...]:
    """The tables that these contenders make possible."""
    return (
        *_by_suite(results, means),
        *_ablation(results, means),
        *_equal_nodes(means),
        *_block_sizes(means),
    )


def _by_suite(results: Results, means: Means) -> list[Block]:
    dual, block = (plainest(means.rows, policy) for policy in ("dual", "block"))
    if dual is None or block is None:
        return []
    rows = []
    for section in sections_at(results, means.temperature):
        if dual in section.rows and block in section.rows:
            pair = compare(section, dual, block)
            rows.append(
                (section.suite, *_cells(pair, suite_gain(section.suite, means.temperature)))
            )
    whole = compare(means, dual, block)
    rows.append(("**mean**", *_cells(whole, gain("dual", "block", means.temperature))))
    caption = (
        f"Temperature {means.temperature:g}: `{dual}` over `{block}`, beside D²SD's Table 3 "
        "(Qwen3-8B)."
    )
    return [Table(("suite", *HEAD), tuple(rows), caption)]


def _ablation(results: Results, means: Means) -> list[Block]:
    block = plainest(means.rows, "block")
    arms = [plainest(means.rows, arm) for arm in ABLATION if arm != "block"]
    known = [arm for arm in arms if arm is not None]
    if results.study != "ablation" or block is None or not known:
        return []
    rows = [
        (f"`{arm}`", *_cells(compare(means, arm, block), ablation_gain(arm.partition(":")[0])))
        for arm in known
    ]
    caption = f"Each arm over `{block}`, beside D²SD's Tables 5 to 7 (Qwen3-8B, greedy)."
    return [Table(("arm", *HEAD), tuple(rows), caption)]


def _equal_nodes(means: Means) -> list[Block]:
    pairs = [p for of in ("dual", "merged") for p in at_equal_nodes(means, of, "best-first")]
    if len(pairs) <= FEW:
        return []
    rows = [
        (
            f"`{pair.ours}`",
            f"{pair.nodes[0]:.1f}",
            f"`{pair.theirs}`",
            f"{pair.nodes[1]:.1f}",
            *_ratio_cells(pair.acceptance),
            *_ratio_cells(pair.speed),
        )
        for pair in pairs
    ]
    head = ("policy", "nodes", "the `best-first` nearest in nodes", "its nodes")
    caption = f"Temperature {means.temperature:g}: trees of two passes over trees of one."
    titles = ("acceptance ×", "beyond chance", "speed ×", "beyond chance")
    return [Table((*head, *titles), tuple(rows), caption)]


def _block_sizes(means: Means) -> list[Block]:
    sized = {
        policy: [n for n in variants(means.rows, policy) if option(n, "block_size")]
        for policy in ("block", "dual")
    }
    found: list[Block] = [
        Text(_best_size(policy, means, names)) for policy, names in sized.items() if len(names) > 1
    ]
    return [*found, Text(_papers_sizes())] if found and means.temperature == 0 else found


def _best_size(policy: str, means: Means, names: Sequence[str]) -> str:
    longest = max(names, key=lambda name: means.rows[name].acceptance_length.value)
    largest = max(names, key=lambda name: int(option(name, "block_size") or 0))
    text = f"`{policy}` accepts most with a block of {option(longest, 'block_size')}"
    text += f" ({means.rows[longest].acceptance_length.value:.2f} tokens a step)"
    if longest == largest:
        text += ", the largest measured"
    else:
        ratio = compare(means, longest, largest).acceptance
        text += f", ×{ratio.value:.2f} of what {option(largest, 'block_size')} gives"
        text += f" ({ratio.chance})"
    fast = [name for name in names if means.rows[name].speedup is not None]
    if fast:
        quickest = max(fast, key=lambda name: _speed(means.rows[name]))
        text += f", and is fastest with {option(quickest, 'block_size')}"
        text += f" ({_speed(means.rows[quickest]):.2f} times plain decoding)"
    return text + "."


def _papers_sizes() -> str:
    parts = []
    for suite, lengths in BLOCK_SIZES.items():
        size = max(lengths, key=lambda one: lengths[one])
        row = ", ".join(f"{one}: {length:.2f}" for one, length in lengths.items())
        parts.append(f"{suite} most with {size} ({row})")
    return (
        f"D²SD's Table 1, Qwen3-8B, acceptance length of DFlash by block size: {'; '.join(parts)}."
    )


def _speed(row: Found) -> float:
    return 0.0 if row.speedup is None else row.speedup.value


def _cells(pair: Comparison, printed: Gain | None) -> tuple[str, ...]:
    accepts, accepts_chance = _ratio_cells(pair.acceptance)
    speeds, speeds_chance = _ratio_cells(pair.speed)
    of_paper = (
        [f"×{v:.2f}" for v in (printed.acceptance, printed.speed)] if printed else [NOTHING] * 2
    )
    return accepts, accepts_chance, of_paper[0], speeds, speeds_chance, of_paper[1]


def _ratio_cells(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return NOTHING, NOTHING
    return f"×{ratio.value:.2f}", "yes" if ratio.apart else "not shown"
