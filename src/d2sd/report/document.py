"""A report before it is Markdown or HTML: blocks in their order.

Texts inside blocks may hold `code`, **bold**, *emphasis* and [links](target), as Markdown has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """Level 1 is the page's own title, 2 a chapter of the contents, 3 a part of a chapter."""

    level: int
    text: str

    @property
    def anchor(self) -> str:
        """What a link to it says: the letters and digits, as GitHub spells them."""
        kept = re.sub(r"[^\w\- ]", "", self.text.lower())
        return kept.strip().replace(" ", "-")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """Every row has as many cells as the head; the first cell names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def is_numeric(self, column: int) -> bool:
        """Whether a column holds figures, so that it is to be read from its right end."""
        cells = [row[column] for row in self.rows]
        return column > 0 and all(cell in GAPS or _is_figure(cell) for cell in cells)


@dataclass(frozen=True)
class Picture:
    """A plot by name; `draw` writes it as PNG to the path it gets."""

    name: str
    caption: str
    draw: Callable[[Path], None]


@dataclass(frozen=True)
class Fold:
    """Blocks that are shown when asked for."""

    summary: str
    blocks: tuple[Block, ...]


Block = Heading | Text | Bullets | Code | Table | Picture | Fold

NOTHING = "—"
ABSENT = "absent"
NOT_ASKED = "not asked"
GAPS = (NOTHING, ABSENT, NOT_ASKED)


def pictures(blocks: Sequence[Block]) -> Iterator[Picture]:
    """All pictures, those in folds as well."""
    for block in blocks:
        if isinstance(block, Picture):
            yield block
        elif isinstance(block, Fold):
            yield from pictures(block.blocks)


def _is_figure(cell: str) -> bool:
    return bool(re.match(r"(\*\*)?[×+−-]?\d", cell))
