"""Answers as token ids, packed: a file that grows by whole batches and takes few bytes a token."""

from __future__ import annotations

import json
import lzma
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SUFFIX = ".packed"
"""A response file of this name is packed."""

MAGIC = b"d2sd answers 1\n"
HEAD = struct.Struct("<II")
"""Before each part: how many bytes it has, and their CRC-32."""

Line = dict[str, Any]
"""One line of a response file (see `conversations`)."""


class PackedAnswers:
    """Batches of response lines in one file, each on disk before the next begins.

    Keeps ids, kinds, temperatures and turns, not the texts, which follow from the ids. Opening
    cuts off a part that a killed run left torn; `len` is the number of whole ones. Raises
    ValueError where the file is damaged otherwise.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts, self._end = 0, 0
        if path.exists():
            for _, self._end in _parts_of(path):
                self._parts += 1
            os.truncate(path, self._end)

    def __len__(self) -> int:
        return self._parts

    def append(self, part: Sequence[Sequence[Line]]) -> None:
        """Write the lines of one batch, prompt by prompt, so that they survive a power cut."""
        body = packed([line for lines in part for line in lines])
        with self.path.open("ab") as file:
            if file.tell() != self._end:
                raise ValueError(f"{self.path} is being written by another run; let it finish")
            file.write(
                (b"" if self._end else MAGIC) + HEAD.pack(len(body), zlib.crc32(body)) + body
            )
            file.flush()
            os.fsync(file.fileno())
            self._end = file.tell()
        self._parts += 1


def packed_lines(path: Path) -> Iterator[Line]:
    """The lines of a packed file, without the texts of prompt and response."""
    for body, _ in _parts_of(path):
        yield from unpacked(body)


def packed(lines: Sequence[Line]) -> bytes:
    """Lines as bytes. Token ids are 16-bit numbers where they fit, else 32-bit."""
    prompts = [id_ for line in lines for id_ in line["prompt_ids"]]
    answers = [id_ for line in lines for id_ in line["response_ids"]]
    wide = max([*prompts, *answers], default=0) >= 1 << 16
    head = {
        "wide": wide,
        "prompt_lengths": [len(line["prompt_ids"]) for line in lines],
        "response_lengths": [len(line["response_ids"]) for line in lines],
        **{name: [line.get(name) for line in lines] for name in _KEPT},
    }
    words = json.dumps(head, ensure_ascii=False).encode()
    ids = _array(wide, prompts + answers).tobytes()
    return lzma.compress(struct.pack("<I", len(words)) + words + ids, **_FORMAT)


def unpacked(body: bytes) -> Iterator[Line]:
    """The lines that `packed` was given, texts left out."""
    whole = lzma.decompress(body)
    (size,) = struct.unpack_from("<I", whole)
    head = json.loads(whole[4 : 4 + size])
    ids = _array(head["wide"], ())
    ids.frombytes(whole[4 + size :])
    if sys.byteorder == "big":
        ids.byteswap()
    prompt, answer = 0, sum(head["prompt_lengths"])
    for number, asked in enumerate(head["prompt_lengths"]):
        given = head["response_lengths"][number]
        told = {name: head[name][number] for name in _KEPT}
        yield {
            **{name: value for name, value in told.items() if value is not None},
            "prompt_ids": ids[prompt : prompt + asked].tolist(),
            "response_ids": ids[answer : answer + given].tolist(),
        }
        prompt, answer = prompt + asked, answer + given


_KEPT = ("id", "kind", "turn", "temperature", "finish", "ids")
_FORMAT: dict[str, Any] = {
    "format": lzma.FORMAT_XZ,
    "filters": [{"id": lzma.FILTER_LZMA2, "preset": 2, "lc": 0, "lp": 1, "pb": 1}],
}
"""The literal coder knows which byte of a 16-bit number it writes."""


def _array(wide: bool, ids: Sequence[int]) -> array[int]:
    found = array("I" if wide else "H", ids)
    if sys.byteorder == "big":
        found.byteswap()
    return found


def _parts_of(path: Path) -> Iterator[tuple[bytes, int]]:
    """Every whole part and where it ends."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            if path.stat().st_size < len(MAGIC):
                return  # torn within its first bytes
            raise ValueError(
                f"{path} holds no packed answers; give a file that d2sd regenerate made"
            )
        end = len(MAGIC)
        while len(head := file.read(HEAD.size)) == HEAD.size:
            size, checksum = HEAD.unpack(head)
            body = file.read(size)
            if len(body) < size:
                return
            if zlib.crc32(body) != checksum:
                raise ValueError(f"{path} is damaged at byte {end}; take an older copy of it")
            end += HEAD.size + size
            yield body, end
