"""Draw recall against queries per second, as an SVG that is equal for equal figures.

Every curve has its own marker, dashes and label, so that it is readable without colour. Nothing
here measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

FILE = Path(__file__).resolve().parent / "recall.svg"
QUICK_FILE = FILE.parent.parent / "build" / "recall.svg"
"""The file of a --quick run, which the README does not show."""

SIZE_INCHES = (8.0, 5.0)
OURS = (("#0b5fa5", "o"), ("#0b5fa5", "s"))
THEIRS = (("#b35900", "^"), ("#5f6b76", "D"), ("#7a3b8f", "v"))
DASHES = ("--", "-.", ":")
FIXED: dict[Any, Any] = {  # matplotlib's type is a literal of every name that there is
    "svg.hashsalt": "vectorshard",
    "svg.fonttype": "none",  # text stays text: smaller, and the reader's own font
    "font.family": "sans-serif",
    "font.size": 10,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Points (recall, queries per second), and their label."""

    name: str
    points: Sequence[tuple[float, float]]
    is_ours: bool = False


def draw(curves: Sequence[Curve], file: Path) -> None:
    """Write the picture of all curves; ours in solid lines."""
    ours = iter(zip(OURS, ("-", "-"), strict=True))
    theirs = iter(zip(THEIRS, DASHES, strict=True))
    with mpl.rc_context(FIXED):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            (colour, marker), dashes = next(ours if curve.is_ours else theirs)
            recalls, rates = zip(*sorted(curve.points), strict=True)
            axes.plot(
                recalls,
                rates,
                color=colour,
                marker=marker,
                linestyle=dashes,
                linewidth=2.2 if curve.is_ours else 1.4,
                markersize=6,
                markerfacecolor=colour if curve.is_ours else "white",
                label=curve.name,
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=()))
        axes.set_xlabel("recall@10")
        axes.set_ylabel("queries/s (log scale)")
        axes.grid(color="#d9dde1", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
