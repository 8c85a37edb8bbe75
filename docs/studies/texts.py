"""Greedy or sampled text to learn from. Writes docs/studies/texts.json.

python docs/studies/texts.py STUDY   # a folder with greedy-text.json and sampled-text.json
"""

import json
import sys
from pathlib import Path

WORDS = {"greedy-text": "greedy answers", "sampled-text": "answers at temperature 0.8"}

rows, raw = [], {}
for name, words in WORDS.items():
    run = json.loads((Path(sys.argv[1]) / f"{name}.json").read_text())
    raw[name] = [g for g in run["groups"] if g["kind"] == "all"]
    for group in raw[name]:
        del group["honesty"]  # long, and not asked here
    cells = [words]
    for temperature in (0.0, 1.0):
        (group,) = [g for g in raw[name] if g["temperature"] == temperature]
        for policy in ("block", "best-first:budget=32"):
            length = group["policies"][policy]["acceptance_length"]
            cells.append(f"{length['mean']:.2f} ± {(length['high'] - length['low']) / 2:.2f}")
    rows.append(cells)
columns = ["learned from", "greedy: block", "greedy: best-first", "T = 1: block"]
columns.append("T = 1: best-first")
result = {"tables": {"texts": {"columns": columns, "rows": rows}}, "groups": raw}
out = Path(__file__).with_name("texts.json")
out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
for cells in (columns, ["---"] * len(columns), *rows):
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
