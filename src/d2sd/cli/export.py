"""`d2sd export`: a drafter in the layout that another engine reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from d2sd.cli.options import OUTPUT, Json, grouped, option


@dataclass(frozen=True)
class ExportOptions:
    """Where the drafter goes, how it is written, and what it drafts for."""

    out: Annotated[
        Path, option("--out", OUTPUT, "The folder to write; it appears as a whole.", "FOLDER")
    ]
    layout: Annotated[str, option("--format", OUTPUT, "dflash, speculators or vllm.", "LAYOUT")]
    model: Annotated[
        str | None,
        option("--model", OUTPUT, "The target, which all but the dflash layout name.", "TARGET"),
    ] = None


@grouped
def export(
    drafter: Annotated[
        str,
        typer.Argument(
            help="A drafter's folder in either layout, a folder with first and second, or a hub id."
        ),
    ],
    options: ExportOptions,
    as_json: Json = False,
) -> None:
    """Write a drafter in the DFlash layout or in that of speculators, or one for vLLM.

    Weights keep their bits. Either layout can be exported to the other, and d2sd decodes with both.
    vllm is the first drafter alone, in the layout that a stock vLLM serves with method dflash.
    """
    from d2sd.cli.terminal import note, print_json
    from d2sd.drafters.export import export as write
    from d2sd.models.resolve import resolve

    target = resolve(options.model, note) if options.model else None
    remarks = write(drafter, options.out, options.layout, target)
    for remark in remarks:
        note(remark)
    if as_json:
        print_json({"out": str(options.out), "format": options.layout, "notes": remarks})
    else:
        note(f"wrote {options.out}")
