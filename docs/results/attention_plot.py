"""Draws docs/results/attention.json as docs/results/attention.png.

python docs/results/attention_plot.py
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

here = Path(__file__).parent
rows = json.loads((here / "attention.json").read_text())["rows"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharex=True)
for axis, dtype in zip(axes, ("float32", "bfloat16"), strict=True):
    chosen = [row for row in rows if row["dtype"] == dtype]
    contexts = [row["context"] for row in chosen]
    for way, style in (
        ("dense", "s-"),
        ("copies", "d-"),
        ("one level", "o-"),
        ("two levels", "^--"),
    ):
        axis.plot(contexts, [row["milliseconds"][way][1] for row in chosen], style, label=way)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(contexts, [f"{context:,}".replace(",", " ") for context in contexts])
    axis.set_xlabel("committed tokens")
    axis.set_title(dtype)
    axis.grid(alpha=0.3, which="both")
axes[0].set_ylabel("ms a layer, 48 nodes")
axes[0].legend(frameon=False)
figure.tight_layout()
figure.savefig(here / "attention.png", dpi=110)
