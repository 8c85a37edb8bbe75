"""A tiny target with responses, and the command that trains drafters for it in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from folders import save_target

SHORT = (
    *("first.steps=6", "second.steps=4", "one.steps=4", "evaluate_every=3", "checkpoint_every=2"),
    *("block_size=4", "intermediate_size=32", "sequences_per_batch=4", "anchors_per_sequence=4"),
    *("validation=3", "first.warmup=1"),
)


def make_home(home: Path) -> Path:
    """A folder with a target and responses of random tokens; token 0 is in none."""
    save_target(home / "target")
    rng = torch.Generator().manual_seed(0)
    rows = []
    for number in range(20):
        ids = torch.randint(3, 200, (8 + number % 9,), generator=rng).tolist()
        rows.append({"prompt_ids": ids[:3], "response_ids": ids[3:], "temperature": 0.0})
    (home / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def arguments(home: Path, folder: Path, *more: str) -> list[str]:
    """`train` in `home` with its work and its drafters in `folder`."""
    return [
        *("train", str(home / "responses.jsonl"), "--model", str(home / "target")),
        *("--device", "cpu", "--work", str(folder / "work"), "--out", str(folder / "out")),
        *(word for setting in SHORT for word in ("--set", setting)),
        *more,
    ]


def evaluations(folder: Path) -> list[dict]:
    """Lines of the exported log that tell of an evaluation."""
    lines = (folder / "out" / "training.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "stage" in line]
