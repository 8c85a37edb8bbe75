"""A bench's report: the same blocks as Markdown, as one HTML file, and as a page of the docs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from d2sd.bench.results import Results
from d2sd.bench.studies import QUESTIONS
from d2sd.pictures import can_draw
from d2sd.report import plots
from d2sd.report.beside_paper import beside_paper
from d2sd.report.document import Block, Bullets, Code, Fold, Heading, Text, pictures
from d2sd.report.markdown import to_markdown
from d2sd.report.origin import MEANINGS, command_line, origin, summary
from d2sd.report.page import to_page
from d2sd.report.statements import statements, where_it_does_not_pay
from d2sd.report.tables import (
    absent_notes,
    detail_table,
    main_table,
    sections_at,
    stage_split,
    stage_table,
    suite_table,
)

PLOTS = "plots"
NO_PLOTS = "*Without plots: matplotlib is not installed (`pip install 'd2sd[bench]'`).*"


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write report.md, report.html and plots/*.png; gives all files.

    Without matplotlib the two pages stand alone and say so. The pages are put in place last: a
    write that fails leaves the old ones.
    """
    blocks = report(results)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".report.") as name:
        unfinished = Path(name)
        drawn = _draw(blocks, unfinished) if can_draw() else {}
        links = {name: f"{PLOTS}/{file.name}" for name, file in drawn.items()}
        images = {name: file.read_bytes() for name, file in drawn.items()}
        (unfinished / "report.md").write_text(to_markdown(blocks, links), encoding="utf-8")
        (unfinished / "report.html").write_text(to_page(blocks, images), encoding="utf-8")
        if drawn:
            (folder / PLOTS).mkdir(exist_ok=True)
        written = [folder / PLOTS / file.name for file in drawn.values()]
        written += [folder / page for page in ("report.md", "report.html")]
        for file in written:
            shutil.move(unfinished / file.name, file)
    return written


def report(results: Results) -> list[Block]:
    """Everything of one bench."""
    title = "Bench" if results.study is None else f"Study `{results.study}`"
    return [
        Heading(1, f"{title}: {results.run.get('model', 'a model')}"),
        *_question(results),
        summary(results),
        *([] if can_draw() else [Text(NO_PLOTS)]),
        Heading(2, "Speed-up and acceptance"),
        *_overview(results),
        Heading(2, "What the figures say"),
        *_said(results),
        *_details(results),
        *_chapter("Where the time goes", _stages(results)),
        *_chapter("How honest the confidences are", tuple(plots.honesty(results))),
        Heading(2, "How it was measured"),
        *origin(results),
        Heading(2, "What the words mean"),
        *MEANINGS,
    ]


def results_page(benches: Mapping[Path, Results], page: Path) -> str:
    """What docs/results.md is: tables and sentences of every bench, from its results alone.

    The keys are the folders of benches, where results.json, report.md and plots/ lie; links to
    them start from where `page` is. Nothing is read or written.
    """
    head: list[Block] = [
        Heading(1, "Results"),
        Text(
            "Written by `d2sd report --page` from the results.json of the benches below, never "
            "by hand."
        ),
        *MEANINGS,
    ]
    parts = [to_markdown(head, {})]
    for folder, results in benches.items():
        place = Path(os.path.relpath(folder, page.parent)).as_posix()
        blocks = _in_short(results, folder.name, place)
        links = {one.name: f"{place}/{PLOTS}/{one.name}.png" for one in pictures(blocks)}
        parts.append(to_markdown(blocks, links))
    return "\n".join(parts)


def _in_short(results: Results, name: str, place: str) -> list[Block]:
    """A bench's chapter of the page over several."""
    command = command_line(results)
    return [
        Heading(2, f"Bench {name}" if results.study is None else f"Study {results.study}"),
        *_question(results),
        summary(results),
        *([Code(command)] if command else []),
        Text(f"[All figures]({place}/results.json), [the whole report]({place}/report.md)."),
        *_overview(results),
        *_said(results),
    ]


def _question(results: Results) -> list[Block]:
    """What a study asks."""
    question = QUESTIONS.get(results.study or "")
    return [Text(question)] if question else []


def _overview(results: Results) -> list[Block]:
    blocks: list[Block] = list(plots.overview(results))
    for means in results.means:
        blocks += [main_table(results, means), *plots.sizes(results, means)]
    return [*blocks, *_bullets(absent_notes(results))]


def _said(results: Results) -> list[Block]:
    blocks: list[Block] = []
    for means in results.means:
        blocks.append(Heading(3, f"Means over suites, temperature {means.temperature:g}"))
        blocks += _bullets(statements(results, means))
        blocks += beside_paper(results, means)
        blocks.append(
            Heading(3, f"Where the method does not pay, temperature {means.temperature:g}")
        )
        blocks += _bullets(where_it_does_not_pay(results, means))
    return blocks


def _details(results: Results) -> list[Block]:
    blocks: list[Block] = []
    for means in results.means:
        sections = sections_at(results, means.temperature)
        blocks += [
            Heading(2, f"In detail, temperature {means.temperature:g}"),
            detail_table(results, means),
            *plots.of_temperature(results, means),
            *(
                Fold(f"{s.suite}: {s.prompts} prompts", (suite_table(results, s),))
                for s in sections
            ),
        ]
    return blocks


def _stages(results: Results) -> tuple[Block, ...]:
    found: list[Block] = []
    for means in results.means:
        if stage_split(results, means.temperature):
            found.append(stage_table(results, means.temperature))
            found += plots.stages_picture(results, means.temperature)
    return tuple(found)


def _chapter(title: str, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """A heading and its blocks, nothing where there are none."""
    return (Heading(2, title), *blocks) if blocks else ()


def _bullets(items: tuple[str, ...]) -> list[Block]:
    return [Bullets(items)] if items else []


def _draw(blocks: list[Block], folder: Path) -> dict[str, Path]:
    drawn = {}
    for picture in pictures(blocks):
        drawn[picture.name] = folder / f"{picture.name}.png"
        picture.draw(drawn[picture.name])
    return drawn
