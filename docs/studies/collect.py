"""Tables and curves of the studies from the logs that arms.sh left. Writes docs/studies/.

python docs/studies/collect.py runs/proving-ground/study
"""

import json
import sys
from pathlib import Path

from d2sd.card.curves import read_training
from d2sd.card.plots import draw_curves

HERE = Path(__file__).parent

TABLES = {
    "levers": {
        "base": "all levers",
        "hard-labels": "without soft labels",
        "adamw": "AdamW in place of Muon",
        "random-start": "random first weights",
        "uncompiled": "step not compiled",
        "none-of-them": "none of these levers",
    },
    "losses": {
        "base": "soft: half emitted token, half target's distribution",
        "hard-labels": "decayed cross-entropy (the paper's)",
        "loss-kl": "forward KL",
        "loss-dspark": "0.1 cross-entropy + 0.9 total variation",
        "loss-dpace": "D-PACE",
        "loss-ce-streak": "cross-entropy + streak",
    },
    "shapes": {
        "base": "2 layers, 3 taps, block 16",
        "layers-1": "1 layer",
        "layers-3": "3 layers",
        "one-tap": "1 tap, the last layer",
        "block-8": "block 8",
    },
    "networks": {"two": "two networks", "one": "one network for both passes"},
}


def points(folder, stage=None):
    """(seconds since the start, point) of an arm's last stage, or of `stage`."""
    stages = read_training(folder / "out" / "training.jsonl").stages
    return stages[stage or list(stages)[-1]]


def row(name, words, reference, stage=None):
    """Acceptance at the end, and when the arm had spent the reference's seconds."""
    curve = points(STUDY / name, stage)
    last = curve[-1]
    budget = reference[-1].seconds
    within = [p.acceptance for p in curve if p.seconds <= budget * 1.02]
    return [
        words,
        f"{last.positions / 1e6:.2f} M",
        f"{last.positions / last.seconds / 1000:.1f} k",
        f"{last.acceptance:.2f}",
        f"{within[-1]:.2f}" if within else "—",
    ]


def table(group, names):
    first = next(iter(names))
    reference = points(STUDY / first)
    return {
        "columns": [
            "arm",
            "slots learned from",
            "slots a second",
            "acceptance length",
            "at the first arm's seconds",
        ],
        "rows": [
            row(name, words, reference)
            for name, words in names.items()
            if (STUDY / name / "out").is_dir()
        ],
    }


def main():
    found = {}
    for group, names in TABLES.items():
        there = {n: w for n, w in names.items() if (STUDY / n / "out").is_dir()}
        if not there:
            continue
        found[group] = table(group, there)
        curves = {words: points(STUDY / name) for name, words in there.items()}
        if group != "networks":
            draw_curves(curves, "seconds", HERE / f"{group}.png")
    raw = {
        folder.name: [json.loads(line) for line in (folder / "out" / "training.jsonl").open()]
        for folder in sorted(STUDY.iterdir())
        if (folder / "out").is_dir()
    }
    result = {"tables": found, "logs": raw}
    (HERE / "arms.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for group, found_table in found.items():
        sys.stdout.write(f"\n{group}\n\n| {' | '.join(found_table['columns'])} |\n")
        sys.stdout.write("| " + " | ".join("---" for _ in found_table["columns"]) + " |\n")
        for cells in found_table["rows"]:
            sys.stdout.write(f"| {' | '.join(cells)} |\n")


STUDY = Path(sys.argv[1])
main()
