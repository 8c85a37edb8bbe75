"""What a training leaves behind after a sitting, small enough to be carried, and its way back.

    python scripts/gpu/sitting.py keep WORK FOLDER [--mib 15] [--total 60]
    python scripts/gpu/sitting.py restore FOLDER WORK

`keep` cuts the work folder of `d2sd train` into parts, as much of it as fits into `--total` MiB:
everything (goes on bit for bit), or everything in half precision, or that without the best
weights so far. It says which. Without the best weights the next evaluation begins anew:
harmless before the cooldown, whose last evaluations are the best.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from d2sd.train.checkpoints import lighten
from shards import MANIFEST, MIB, join, split

WEIGHTS = ("checkpoint.safetensors", "best.safetensors")
TEXTS = ("recipe.json", "training.jsonl")
BUNDLE = "work.tar"


def keep(work: Path, folder: Path, mib: float, total: float) -> str:
    """Write to `folder` what fits of `work`; gives how it was kept: whole, light, or lightest."""
    texts = [work / name for name in TEXTS if (work / name).is_file()]
    room = total * MIB - sum(path.stat().st_size for path in texts)
    with tempfile.TemporaryDirectory() as scratch:
        how, weights = _fitting(work, Path(scratch), room)
        bundle = Path(scratch) / BUNDLE
        with tarfile.open(bundle, "w") as tar:
            for path in weights:
                tar.add(path, f"{path.parent.name}/{path.name}")
            for path in texts:
                tar.add(path, path.name)
        split(bundle, folder, mib)
    for path in texts:  # once more, to be read where there is no need for the weights
        shutil.copyfile(path, folder / path.name)
    return how


def _fitting(work: Path, scratch: Path, room: float) -> tuple[str, list[Path]]:
    """As many of the weights as fit into `room` bytes, and how they are kept."""
    whole = [path for name in WEIGHTS for path in sorted(work.glob(f"*/{name}"))]
    if not whole:
        raise ValueError(f"{work} holds no checkpoint; has its training begun?")
    if _size(whole) <= room:
        return "whole", whole
    light = [_light(path, scratch) for path in whole]
    if _size(light) <= room:
        return "light", light
    lightest = [path for path in light if path.name == WEIGHTS[0]]
    if _size(lightest) <= room:
        return "lightest", lightest
    raise ValueError(f"{work} needs {_size(lightest) / MIB:.0f} MiB at least; raise --total")


def restore(folder: Path, work: Path) -> bool:
    """Put what `keep` wrote into `work`; False where there is nothing, or `work` is here still."""
    manifest = folder / f"{BUNDLE}{MANIFEST}"
    if work.exists() or not manifest.is_file():
        return False
    work.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work.parent) as scratch:
        join(manifest, Path(scratch) / BUNDLE)
        with tarfile.open(Path(scratch) / BUNDLE) as tar:
            # as filter="data" would, which the first releases of Python 3.11 don't know
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            tar.extractall(Path(scratch) / "work")
        (Path(scratch) / "work").rename(work)
    return True


def _light(path: Path, scratch: Path) -> Path:
    goal = scratch / path.parent.name / path.name
    goal.parent.mkdir(parents=True, exist_ok=True)
    lighten(path, goal)
    return goal


def _size(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def main(words: list[str] | None = None) -> int:
    """The command line; 2 for a user's error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    keeping = commands.add_parser("keep")
    keeping.add_argument("work", type=Path)
    keeping.add_argument("folder", type=Path)
    keeping.add_argument("--mib", type=float, default=15)
    keeping.add_argument("--total", type=float, default=60)
    restoring = commands.add_parser("restore")
    restoring.add_argument("folder", type=Path)
    restoring.add_argument("work", type=Path)
    given = parser.parse_args(words)
    try:
        if given.command == "keep":
            how = keep(given.work, given.folder, given.mib, given.total)
            sys.stderr.write(f"kept {how}\n")
        else:
            restore(given.folder, given.work)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
