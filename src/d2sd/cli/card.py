"""`d2sd card`: a drafter's model card from the files that its making left."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from d2sd.cli.options import OUTPUT, grouped, option

CONTENT = "Content"


@dataclass(frozen=True)
class CardOptions:
    """What the card tells beyond the folder's own files, and where it goes."""

    evaluation: Annotated[
        list[Path],
        option(
            "--evaluation", CONTENT, "A JSON of d2sd evaluate; may be given again.", "EVAL.json"
        ),
    ] = field(default_factory=list)
    notes: Annotated[
        Path | None,
        option("--notes", CONTENT, "Markdown of yours, included word by word.", "FILE.md"),
    ] = None
    licence: Annotated[
        str | None, option("--license", CONTENT, "The drafters' licence, as in apache-2.0.", "ID")
    ] = None
    base_model: Annotated[
        str | None, option("--base-model", CONTENT, "The target's id on the hub.", "ID")
    ] = None
    out: Annotated[
        Path | None,
        option("--out", OUTPUT, "The card; FOLDER/README.md if not given.", "README.md"),
    ] = None


@grouped
def card(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A drafter's folder, or what training wrote: first, second, recipe.json, "
            "training.jsonl."
        ),
    ],
    options: CardOptions,
) -> None:
    """Write a model card with plots from what lies in a folder.

    Every figure comes from a file. What no file says is called not measured.
    """
    from d2sd.card.compose import card as compose
    from d2sd.card.subject import Wording, read_subject
    from d2sd.cli.terminal import note

    wording = Wording(options.licence, options.base_model, read_notes(options.notes))
    page = compose(read_subject(folder, options.evaluation, wording))
    for path in page.write(options.out or folder / "README.md"):
        note(f"wrote {path}")


def read_notes(path: Path | None) -> str | None:
    """The author's own section. Raises ValueError when it can't be read."""
    if path is None:
        return None
    try:
        return path.read_text()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
