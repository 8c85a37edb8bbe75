"""Files cut into parts of limited size, and put together again: nothing but the standard library.

    python scripts/gpu/shards.py split FILE FOLDER [--mib 15]
    python scripts/gpu/shards.py join FOLDER/FILE.parts.json GOAL

`split` writes FILE.part00, FILE.part01, … and FILE.parts.json, which holds the SHA-256 of every
part and of the whole; `join` refuses parts that are missing or damaged and names them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

MIB = 1 << 20
MANIFEST = ".parts.json"


def split(source: Path, folder: Path, mib: float = 15) -> Path:
    """Cut `source` into parts of at most `mib` MiB in `folder`; the manifest that lists them."""
    if mib <= 0:
        raise ValueError(f"mib is {mib}; it must be above 0")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{source.name}.part*"):
        old.unlink()
    parts: list[dict[str, object]] = []
    whole = hashlib.sha256()
    with source.open("rb") as file:
        while (piece := file.read(int(mib * MIB))) or not parts:
            name = f"{source.name}.part{len(parts):02d}"
            (folder / name).write_bytes(piece)
            whole.update(piece)
            parts.append({"name": name, "sha256": hashlib.sha256(piece).hexdigest()})
    manifest = folder / f"{source.name}{MANIFEST}"
    listed = {"file": source.name, "sha256": whole.hexdigest(), "parts": parts}
    manifest.write_text(json.dumps(listed, indent=1) + "\n")
    return manifest


def join(manifest: Path, goal: Path) -> None:
    """Put the file of a manifest together as `goal`. ValueError, and no goal, for a bad part."""
    listed = json.loads(manifest.read_text())
    goal.parent.mkdir(parents=True, exist_ok=True)
    unfinished = goal.with_name(f"{goal.name}.joining")
    whole = hashlib.sha256()
    try:
        with unfinished.open("wb") as file:
            for part in listed["parts"]:
                piece = _checked(manifest.parent / part["name"], part["sha256"])
                whole.update(piece)
                file.write(piece)
        if whole.hexdigest() != listed["sha256"]:
            raise ValueError(f"the parts of {manifest} don't make the file they were cut from")
        unfinished.replace(goal)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked(path: Path, sha256: str) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is missing; bring it and join again")
    piece = path.read_bytes()
    if hashlib.sha256(piece).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged; bring it again")
    return piece


def main(words: list[str] | None = None) -> int:
    """The command line; 2 for a user's error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cutting = commands.add_parser("split")
    cutting.add_argument("source", type=Path)
    cutting.add_argument("folder", type=Path)
    cutting.add_argument("--mib", type=float, default=15)
    joining = commands.add_parser("join")
    joining.add_argument("manifest", type=Path)
    joining.add_argument("goal", type=Path)
    given = parser.parse_args(words)
    try:
        if given.command == "split":
            split(given.source, given.folder, given.mib)
        else:
            join(given.manifest, given.goal)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
