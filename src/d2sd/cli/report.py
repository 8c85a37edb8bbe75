"""`d2sd report`: a bench's files made again from its log, and one page from several benches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2sd.cli.options import OUTPUT, option


def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that d2sd bench --out wrote.", metavar="DIR…")
    ],
    page: Annotated[
        Path | None,
        option("--page", OUTPUT, "Write one Markdown page over all of them instead.", "FILE.md"),
    ] = None,
) -> None:
    """Make the reports of finished benches again, or one page of several.

    Figures are computed anew from each folder's log; for --page, results.json is enough.
    """
    from d2sd.bench.results import read_results
    from d2sd.bench.run import logged
    from d2sd.cli.benching import written
    from d2sd.cli.terminal import note
    from d2sd.journal import written_whole
    from d2sd.report import results_page

    if page is None:
        for folder in folders:
            for path in written(logged(folder), folder):
                note(f"wrote {path}")
        return
    found = {folder: read_results(folder / "results.json") for folder in folders}
    with written_whole(page) as file:
        file.write(results_page(found, page))
    note(f"wrote {page}")
