"""Acceptance by suite as tables, from a JSON of d2sd evaluate. Writes docs/results/suites.json.

python docs/results/suites.py EVALUATION.json
"""

import json
import sys
from pathlib import Path

run = json.loads(Path(sys.argv[1]).read_text())
tables = {}
for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
    groups = [group for group in run["groups"] if group["temperature"] == temperature]
    (whole,) = [group for group in groups if group["kind"] == "all"]
    rows = []
    for group in [g for g in groups if g["kind"] != "all"]:
        cells = [group["kind"], str(group["answers"])]
        for figures in group["policies"].values():
            length = figures["acceptance_length"]
            half = (length["high"] - length["low"]) / 2
            cells.append(f"{length['mean']:.2f} ± {half:.2f}")
        rows.append(cells)
    means = [f"{mean:.2f}" for mean in whole["mean_over_kinds"].values()]
    nodes = [f"{figures['nodes_per_step']:.1f}" for figures in whole["policies"].values()]
    rows += [["mean over suites", "", *means], ["nodes a step", "", *nodes]]
    tables[name] = {"columns": ["suite", "answers", *whole["policies"]], "rows": rows}
result = {"tables": tables, **run}
out = Path(__file__).with_name("suites.json")
out.write_text(json.dumps(result, ensure_ascii=False) + "\n")
