"""What a work folder is a training of: its recipe and its responses, so that no other goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d2sd.train.recipes import Recipe
from d2sd.train.responses import Response
from d2sd.train.settings import dotted, first_difference

NAME = "recipe.json"


def describe(recipe: Recipe, responses: Sequence[Response]) -> dict[str, Any]:
    """The full recipe, and how many responses with which digest, ready for JSON."""
    digest = hashlib.sha256()
    for response in responses:
        line = (response.prompt_ids, response.response_ids, response.temperature)
        digest.update(str(line).encode())
    found = {"count": len(responses), "sha256": digest.hexdigest()}
    values: dict[str, Any] = json.loads(json.dumps({**asdict(recipe), "responses": found}))
    return values


def check_same(folder: Path, values: dict[str, Any]) -> None:
    """Raises ValueError when `folder` holds a training of something else than `values`.

    Lengths may differ: how many steps, how often it is measured and saved.
    """
    path = folder / NAME
    if not path.is_file():
        return
    difference = first_difference(dotted(json.loads(path.read_text())), dotted(values))
    if difference:
        raise ValueError(
            f"{folder} holds a training that can't go on: {difference}; take it back, or choose "
            "another work folder"
        )


def write_record(folder: Path, values: dict[str, Any]) -> None:
    """Keep `values` in the folder's recipe.json."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / (NAME + ".part")
    unfinished.write_text(json.dumps(values, indent=2) + "\n")
    unfinished.replace(folder / NAME)
