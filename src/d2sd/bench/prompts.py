"""Prompt files: JSONL, one `{"id", "turns": [...]}` a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Prompt:
    """What a user says, turn by turn; each turn follows the model's answer to the one before."""

    id: str
    turns: tuple[str, ...]


def read_prompts(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """The first `limit` prompts of a file, all of them by default.

    Raises ValueError, with file and line number, where a line is not a prompt.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 or more")
    prompts: list[Prompt] = []
    try:
        with Path(path).open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if limit is not None and len(prompts) == limit:
                    break
                if line.strip():
                    prompts.append(_prompt(line, f"{path}, line {number}"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; give a JSONL file") from None
    if not prompts:
        raise ValueError(f'{path} holds no prompts; give lines like {{"id": "1", "turns": ["…"]}}')
    return prompts


def _prompt(line: bytes, place: str) -> Prompt:
    try:
        values = json.loads(line)
    except UnicodeDecodeError:
        raise ValueError(f"{place} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(values, dict):
        raise ValueError(f'{place} is no object; write {{"id": "1", "turns": ["…"]}}')
    turns, name = values.get("turns"), values.get("id")
    if not (isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns)):
        raise ValueError(f'{place} has no list of texts under "turns"')
    if not isinstance(name, str | int):
        raise ValueError(f'{place} has no "id"')
    return Prompt(str(name), tuple(turns))
