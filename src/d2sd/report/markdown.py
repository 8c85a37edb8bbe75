"""A report as Markdown, as GitHub shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from d2sd.report.document import Block, Bullets, Code, Fold, Heading, Picture, Table, Text


def to_markdown(blocks: Sequence[Block], pictures: Mapping[str, str]) -> str:
    """The page; `pictures` gives the link of every picture by name, those missing are left out."""
    parts = [_block(block, pictures) for block in blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, pictures: Mapping[str, str]) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Text(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Code(text):
            return f"```sh\n{text}\n```"
        case Table():
            return _table(block)
        case Picture():
            return _picture(block, pictures)
        case Fold(summary, inner):
            body = to_markdown(inner, pictures)
            return f"<details><summary>{summary}</summary>\n\n{body}\n</details>"


def _table(table: Table) -> str:
    rule = ["---:" if table.is_numeric(column) else "---" for column in range(len(table.head))]
    lines = [table.head, rule, *table.rows]
    drawn = "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)
    return f"{drawn}\n\n*{table.caption}*" if table.caption else drawn


def _picture(picture: Picture, pictures: Mapping[str, str]) -> str:
    if picture.name not in pictures:
        return ""
    alt = picture.caption.split(". ")[0].rstrip(".").replace("`", "")
    return f"![{alt}]({pictures[picture.name]})\n\n*{picture.caption}*"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
