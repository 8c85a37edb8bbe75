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


def slots(folder):
    """What all stages of an arm learned from."""
    stages = read_training(folder / "out" / "training.jsonl").stages.values()
    return sum(curve[-1].positions for curve in stages)


def row(name, words):
    """What an arm learned from, and its acceptance at the first look and at the end."""
    curve = points(STUDY / name)
    shown = [f"{point.acceptance:.2f}" for point in (curve[0], curve[-1])]
    early = shown[0] if len(curve) > 1 else ""
    return [words, f"{slots(STUDY / name) / 1e6:.2f} M", early, shown[1]]


def table(names):
    columns = ["arm", "slots learned from", "accepted after 200 steps", "at the end"]
    return {"columns": columns, "rows": [row(name, words) for name, words in names.items()]}


def main():
    found = {}
    for group, names in TABLES.items():
        there = {n: w for n, w in names.items() if (STUDY / n / "out").is_dir()}
        if not there:
            continue
        found[group] = table(there)
        curves = {words: points(STUDY / name) for name, words in there.items()}
        if group != "networks":
            draw_curves(curves, "positions", HERE / f"{group}.png")
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
