"""From the report of a comparison: python -m benchmarks.compare.report FILE.json.

Draws compare-light.svg and compare-dark.svg next to this file, and puts the tables between the
marks in README.md and benchmarks/README.md. Nothing here measures.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.compare.environment import HERE, ROOT
from benchmarks.picture import FIXED

LABELS = {
    "ours": "vectorshard, gRPC",
    "distributed_faiss": "distributed-faiss",
    "chroma": "Chroma",
    "pgvector": "pgvector",
    "qdrant_edge": "qdrant-edge, in process",
    "zvec": "zvec, in process",
}
PANELS = {"alone": "one caller", "sixteen": "16 callers", "batches": "batches of 64, 4 callers"}
THEMES = {
    "light": ("#1f2328", "#d9dde1", "#0b5fa5"),
    "dark": ("#e6edf3", "#3d444d", "#58a6ff"),
}
"""Text, grid, and ours."""
STYLES = (
    ("#d1700f", "^", "--"),
    ("#9a5cb4", "D", "-."),
    ("#3a9a5f", "v", ":"),
    ("#808a95", "s", (0, (5, 1, 1, 1))),
    ("#d0406f", "P", (0, (1, 1))),
)
"""Of the others: colours that show on both grounds."""


def draw(told: Mapping[str, Any], theme: str, file: Path) -> None:
    """Draw recall against queries/s for each kind of search."""
    text, grid, ours = THEMES[theme]
    colours = {"text.color": text, "axes.labelcolor": text, "xtick.color": text}
    colours |= {"ytick.color": text, "axes.edgecolor": text}
    looks = dict(zip(LABELS, ((ours, "o", "-"), *STYLES), strict=True))
    with mpl.rc_context(FIXED | colours):
        figure = Figure(figsize=(10.5, 4.6), layout="constrained", facecolor="none")
        panels = figure.subplots(1, len(PANELS), sharex=True)
        for axes, (kind, title) in zip(panels, PANELS.items(), strict=True):
            for name, system in told["systems"].items():
                colour, marker, dashes = looks[name]
                points = sorted((point["recall"], point[kind]) for point in system["curve"])
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    marker=marker,
                    linestyle=dashes,
                    linewidth=2.4 if name == "ours" else 1.3,
                    markersize=5,
                    label=LABELS[name],
                )
            axes.set_title(title, fontsize=10)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:,.0f}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("recall@10")
            axes.set_facecolor("none")
            axes.grid(color=grid, linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("queries/s (log scale)")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def number(value: float | None) -> str:
    """Return a figure with three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(head: str, rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    columns = head.count("|")
    ruler = "|---|" + "---:|" * (columns - 2)
    return "\n".join([head, ruler, *(f"| {' | '.join(row)} |" for row in rows)])


def table(told: Mapping[str, Any]) -> str:
    """Return the table of searches, load and memory, with what it was measured on."""
    rows = []
    for name, system in told["systems"].items():
        kinds = [system["kinds"][kind] for kind in PANELS]
        ratios = ["", "", ""] if name == "ours" else [f" ({each['of_ours']:.2f})" for each in kinds]
        size = "" if system["rows"] == told["asked"]["rows"] else f", {system['rows']:,} rows"
        rates = [
            f"{number(each['queries_per_s'])}{share}"
            for each, share in zip(kinds, ratios, strict=True)
        ]
        rates[0] += f"; {number(kinds[0]['p50_ms'])}, {number(kinds[0]['p99_ms'])}"
        cpu = " / ".join(number(each["cpu_us"]) for each in kinds)
        rest = [cpu, number(system["load_s"]), number(system["pss_bytes"] / 1e6)]
        rows.append([LABELS[name] + size, f"{system['recall']:.3f}", *rates, *rest])
    head = "| | recall@10 | one caller, queries/s; p50, p99 in ms | 16 callers | batches of 64 "
    head += "| CPU µs a query | load until indexed, s | MB |"
    absent = "".join(f" {LABELS[name]}: {why}." for name, why in told["absent"].items())
    return f"{lines(head, rows)}\n\n{footer(told)}{absent}"


def footer(told: Mapping[str, Any]) -> str:
    """Return what the figures were measured on."""
    asked, machine = told["asked"], told["asked"]["machine"]
    loads = [system["load_average"][1] for system in told["systems"].values()]
    return (
        f"{asked['file']}: {asked['rows']:,} rows, d={asked['dim']}, {asked['metric']}, k=10; each "
        f"tuned to recall@{asked['target_recall']} on a sample, recall of held-out queries. In "
        f"brackets: the part of ours in the same rounds. {machine['cores']} cores of "
        f"{machine['cpu']}, seed {asked['seed']}, {told['started']}, load average "
        f"{min(loads):.1f} to {max(loads):.1f}, callers included."
    )


def harms(told: Mapping[str, Any]) -> str:
    """Return the table of searches during a load, and of what follows kill -9."""
    rows = []
    for name, system in told["systems"].items():
        if "error" in system["harm"]:
            rows.append([LABELS[name], *["-"] * 6, system["harm"]["error"]])
            continue
        growing, quiet = system["harm"]["growing"], system["harm"]["quiet"]
        again = system["harm"]["recovery"]
        if "all_found_s" in again:
            found = f"all {again['acknowledged']:,} after {number(again['all_found_s'])} s"
        elif "error" in again:
            started = not again["error"].startswith("it did not start")
            found = again["error"].splitlines()[-1].strip() if started else "not measured"
        else:
            found = f"{again['count']:,} of {again['acknowledged']:,} counted, "
            found += f"{100 * again['found']:.0f} % of probes found"
        calls = growing["answered"] + growing["refused"]
        shown = [number(growing["recall"]), number(growing["p50_ms"]), number(growing["p99_ms"])]
        shown += [number(quiet["p99_ms"]), number(growing["took_s"])]
        rows.append([LABELS[name], f"{growing['refused']:,} of {calls:,}", *shown, found])
    head = "| | refused | recall@10 | p50, ms | p99, ms | p99 when quiet, ms | took, s "
    return lines(head + "| found after kill -9 |", rows)


def picture(folder: str) -> str:
    """Return the picture for a page from which `folder` leads here."""
    words = (
        "recall@10 against queries/s: vectorshard through gRPC compared with other vector stores"
    )
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{folder}compare-dark.svg">'
    return f'<picture>{dark}<img alt="{words}" src="{folder}compare-light.svg"></picture>'


def put(file: Path, mark: str, content: str) -> None:
    """Replace what is between `<!-- mark -->` and `<!-- end of mark -->` in a file."""
    before, start, rest = file.read_text().partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->\n")
    if not (start and end):
        raise ValueError(f"{file} has no marks of {mark}")
    file.write_text(f"{before}{start}{content}\n{end}{after}")


def main() -> None:
    """Write what the module says."""
    told = json.loads(Path(sys.argv[1]).read_text())
    for theme in THEMES:
        draw(told, theme, HERE / f"compare-{theme}.svg")
    shown = table(told)
    put(ROOT / "README.md", "compare", f"{picture('benchmarks/compare/')}\n\n{shown}")
    both = f"{picture('compare/')}\n\n{shown}\n\n{harms(told)}"
    put(ROOT / "benchmarks" / "README.md", "compare", both)


if __name__ == "__main__":
    main()
