"""What all plots share: colours, sizes, and PNG files with the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#333333")
"""Told apart by everyone (Okabe and Ito), dark enough on white."""
STYLES = ("-", "--", "-.", ":")
HEIGHT, WIDTH, DOTS = 3.4, 6.8, 110


def can_draw() -> bool:
    """Whether matplotlib is installed, which brings PIL along."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def new_figure(
    columns: int, height: float = HEIGHT, width: float = WIDTH, rows: int = 1
) -> tuple[Any, list[Any]]:
    """A white figure and its panels, row by row. ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'd2sd[train]'") from None
    figure = Figure((width, height), DOTS, facecolor="white", layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=10)
        axes.xaxis.label.set_size(10.5)
        axes.yaxis.label.set_size(10.5)
    return figure, panels


def draw_line(axes: Any, index: int, name: str, x: Sequence[Any], y: Sequence[Any]) -> None:
    """A line whose colour and style are those of place `index`."""
    marker = "o" if len(x) <= 40 else None
    style = STYLES[index // len(COLOURS) % len(STYLES)]
    axes.plot(x, y, style, color=colour(index), marker=marker, markersize=3.5, label=name)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def save_picture(figure: Any, out: Path) -> None:
    """Write 64 colours: a third of the size, and no eye sees it.

    By octree, which keeps the colours of a few dots: others give those to bigger neighbours.
    """
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    whole = Image.open(drawn).convert("RGB")
    few = whole.quantize(64, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette = few.getpalette()
    ground = 3 * few.getpixel((0, 0))  # an octree mixes white with the lightest greys
    few.putpalette([*palette[:ground], 255, 255, 255, *palette[ground + 3 :]])
    few.save(out, format="png", optimize=True)
