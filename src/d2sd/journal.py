"""A long job's finished parts on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast


class Journal:
    """One JSON line for each finished part, in their order, each on disk before the next begins.

    Opening cuts off a line that a killed run left torn. `len` is the number of whole parts.
    Raises ValueError where the file is damaged otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts, self._end = 0, 0
        if path.exists():
            for _, end in self._read():
                self._parts, self._end = self._parts + 1, end
            os.truncate(path, self._end)

    def __len__(self) -> int:
        return self._parts

    def __iter__(self) -> Iterator[Any]:
        """The parts so far."""
        return (part for part, _ in self._read())

    def _read(self) -> Iterator[tuple[Any, int]]:
        """Every whole part and where its line ends."""
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    return
                try:
                    values = json.loads(line)
                    part, in_order = values["holds"], values["part"] == number
                except (ValueError, KeyError, TypeError):
                    in_order = False
                if not in_order:
                    raise ValueError(
                        f"{self.path}, line {number + 1} is damaged; delete the file to start anew"
                    )
                end += len(line)
                yield part, end

    def append(self, part: object) -> None:
        """Write a part so that it survives a power cut."""
        line = json.dumps({"part": self._parts, "holds": part}, ensure_ascii=False) + "\n"
        with self.path.open("ab") as file:
            if file.tell() != self._end:
                raise ValueError(f"{self.path} is being written by another run; let it finish")
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._parts, self._end = self._parts + 1, self._end + len(line.encode())


@contextmanager
def written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file (gzipped where its name says so) that appears under its name when it is whole.

    Equal text gives equal bytes, gzipped or not.
    """
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        sink = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else file
        text = io.TextIOWrapper(cast(IO[bytes], sink), encoding="utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()
        if sink is not file:
            sink.close()
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file that `written_whole` has written."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        yield from lines


def write_record(path: Path, values: Mapping[str, object]) -> None:
    """A small JSON file, whole or not at all."""
    with written_whole(path) as file:
        file.write(json.dumps(values, ensure_ascii=False, indent=2) + "\n")
