"""The learning curve on disk: one JSON line for each start and each evaluation of a training."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "training.jsonl"


class TrainingLog:
    """`training.jsonl` in a folder.

    A start's line has the key `started`, an evaluation's `stage` and `step`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def append(self, line: Mapping[str, object]) -> None:
        """Add a line, on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All lines; one that a killed run left torn is left out."""
        if not self.path.is_file():
            return []
        whole = [line for line in self.path.read_text().splitlines(True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]

    def forget(self, stage: str, after: int) -> None:
        """Drop what a stage logged after a step: it will happen again."""
        kept = [
            line for line in self.lines() if line.get("stage") != stage or line["step"] <= after
        ]
        unfinished = self.path.with_name(NAME + ".part")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in kept))
        unfinished.replace(self.path)
