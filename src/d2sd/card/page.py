"""A Markdown page and its pictures, put in place together."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PICTURES = "plots"


class Page:
    """Paragraphs, tables and pictures in the order they were added."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._pictures: dict[str, Callable[[Path], None]] = {}

    def add(self, *paragraphs: str) -> None:
        """Paragraphs, headings, anything that stands alone."""
        self._parts += [paragraph for paragraph in paragraphs if paragraph]

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table whose columns but the first are numbers, most often."""
        lines = [head, ["---"] * len(head), *rows]
        self.add("\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines))

    def picture(self, name: str, caption: str, draw: Callable[[Path], None]) -> None:
        """A picture that `draw` writes, and under it what it shows."""
        self._pictures[name] = draw
        self.add(f"![{caption.split('.')[0]}]({PICTURES}/{name}.png)", f"*{caption}*")

    @property
    def text(self) -> str:
        return "\n\n".join(self._parts) + "\n"

    def write(self, path: Path) -> list[Path]:
        """Write the page to `path` and the pictures to `plots` beside it; gives all files.

        Everything is drawn before anything is put in place, the page last: a write that fails
        leaves the old page and its pictures as they were.
        """
        unfinished = path.with_name(f".{path.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / PICTURES).mkdir(parents=True)
        try:
            made = self._draw(unfinished)
            (unfinished / path.name).write_text(self.text)
            for file in made:
                (path.parent / file).parent.mkdir(exist_ok=True)
                (unfinished / file).replace(path.parent / file)
            (unfinished / path.name).replace(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return [*(path.parent / file for file in made), path]

    def _draw(self, folder: Path) -> list[Path]:
        made = []
        for name, draw in self._pictures.items():
            made.append(Path(PICTURES) / f"{name}.png")
            draw(folder / made[-1])
        return made


def front_matter(values: Mapping[str, str | Sequence[str]]) -> str:
    """YAML between two lines of dashes, as Hugging Face reads it."""
    lines = ["---"]
    for key, value in values.items():
        if isinstance(value, str):
            lines.append(f"{key}: {value}")
        else:
            lines += [f"{key}:", *(f"- {each}" for each in value)]
    return "\n".join([*lines, "---"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
