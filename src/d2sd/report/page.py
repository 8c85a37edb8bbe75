"""A report as one HTML file that asks no host for anything."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from d2sd.report.document import Block, Bullets, Code, Fold, Heading, Picture, Table, Text

STYLE = Path(__file__).with_name("page.css")

_INLINE = (
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<!\w)\*(.+?)\*(?!\w)"), r"<em>\1</em>"),
    (re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)"), r'<a href="\2">\1</a>'),
)


def to_page(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    """The page; `pictures` gives the PNG of every picture by name, those missing are left out."""
    title = next((b.text for b in blocks if isinstance(b, Heading) and b.level == 1), "Report")
    body = "\n".join(
        _contents(blocks) if part is None else part for part in _parts(blocks, pictures)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title.replace('`', ''))}</title>\n<style>\n{STYLE.read_text()}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def inline(text: str) -> str:
    """A text's markup as HTML; what stands in backticks is taken as it is."""
    parts = text.split("`")
    for place, part in enumerate(parts):
        part = escape(part, quote=False)
        if place % 2 and place < len(parts) - 1:
            parts[place] = f"<code>{part}</code>"
        else:
            parts[place] = part
    whole = "".join(parts)
    for pattern, replacement in _INLINE:
        whole = pattern.sub(replacement, whole)
    return whole


def _parts(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> list[str | None]:
    """Every block, and None where the contents belong: before the first chapter."""
    parts: list[str | None] = []
    for block in blocks:
        if isinstance(block, Heading) and block.level == 2 and None not in parts:
            parts.append(None)
        parts.append(_block(block, pictures))
    return parts


def _contents(blocks: Sequence[Block]) -> str:
    chapters = [b for b in blocks if isinstance(b, Heading) and b.level == 2]
    links = "".join(f'<li><a href="#{c.anchor}">{inline(c.text)}</a></li>' for c in chapters)
    return f'<nav aria-label="Contents"><ol>{links}</ol></nav>'


def _block(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case Heading(level, text):
            anchor = f' id="{block.anchor}"' if level == 2 else ""  # the ones in the contents
            return f"<h{level}{anchor}>{inline(text)}</h{level}>"
        case Text(text):
            return f"<p>{inline(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{inline(item)}</li>' for item in items)}</ul>"
        case Code(text):
            return f'<pre tabindex="0"><code>{escape(text, quote=False)}</code></pre>'
        case Table():
            return _table(block)
        case Picture():
            return _picture(block, pictures)
        case Fold(summary, inner):
            body = "\n".join(_block(each, pictures) for each in inner)
            return f"<details><summary>{inline(summary)}</summary>\n{body}\n</details>"


def _table(table: Table) -> str:
    numeric = [table.is_numeric(column) for column in range(len(table.head))]
    kinds = [' class="figure"' if is_numeric else "" for is_numeric in numeric]
    head = "".join(
        f'<th scope="col"{kind}>{inline(cell)}</th>'
        for kind, cell in zip(kinds, table.head, strict=True)
    )
    body = "\n".join(_row(row, kinds) for row in table.rows)
    name = escape(re.sub(r"[*`]", "", table.caption or table.head[0]))
    caption = f"<caption><span>{inline(table.caption)}</span></caption>" if table.caption else ""
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table>{caption}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(row: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = row
    cells = "".join(
        f"<td{kind}>{inline(cell)}</td>" for kind, cell in zip(kinds[1:], rest, strict=True)
    )
    return f'<tr><th scope="row">{inline(first)}</th>{cells}</tr>'


def _picture(picture: Picture, pictures: Mapping[str, bytes]) -> str:
    if picture.name not in pictures:
        return ""
    data = b64encode(pictures[picture.name]).decode()
    alt = escape(picture.caption.replace("`", ""))
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{inline(picture.caption)}</figcaption></figure>"
    )
