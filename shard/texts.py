"""How results and descriptions read: as text where they are printed, as HTML in a notebook.

Grids of words in, text out. What a grid of a class of the vocabulary contains is here, too, so that
the vocabulary itself stays a list of fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vectorshard.shard.descriptions import (
        CollectionDescription,
        Explanation,
        ShardDescription,
        Topology,
    )
    from vectorshard.shard.types import CollectionConfig, Ledger, Receipt, ShardReceipt


@dataclass(frozen=True, slots=True)
class Grid:
    """A title, and rows of cells below the names of their columns; a grid may be a title alone."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    def text(self) -> str:
        """Return the grid with aligned columns."""
        lines = [self.columns, *self.rows] if self.columns else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            [
                self.title,
                *(
                    "  ".join(
                        cell.ljust(width) for cell, width in zip(line, widths, strict=True)
                    ).rstrip()
                    for line in lines
                ),
            ]
        )

    def html(self) -> str:
        """Return the grid as a table."""
        parts = [f"<p>{escape(self.title)}</p>"]
        if self.columns:
            heads = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
            cells = (
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                for row in self.rows
            )
            parts.append(f"<table><tr>{heads}</tr>{''.join(cells)}</table>")
        return "".join(parts)


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with its noun: 1 row, 2 rows. `several` is the plural, if not with an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


COMPONENTS_SHOWN: Final = 4
METADATA_CHARS: Final = 80
"""How much is printed of a vector, and of metadata."""


def vector_text(vector: Sequence[float]) -> str:
    """Return the first components of a vector, and how many more it has."""
    first = " ".join(f"{component:.4g}" for component in vector[:COMPONENTS_SHOWN])
    others = len(vector) - COMPONENTS_SHOWN
    return f"{first} ... {others:,} more" if others > 0 else first


def metadata_text(metadata: dict[str, Any]) -> str:
    """Return metadata as a line of bounded length."""
    text = str(metadata)
    return text if len(text) <= METADATA_CHARS else f"{text[: METADATA_CHARS - 3]}..."


class Readable:
    """Prints as its grids; `repr` stays that of its fields."""

    __slots__ = ()

    def _grids(self) -> Sequence[Grid]:
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(grid.text() for grid in self._grids())

    def _repr_html_(self) -> str:
        return "".join(grid.html() for grid in self._grids())


def ledger_grid(ledger: Ledger) -> Grid:
    """Return a ledger as its equation."""
    parts = [
        f"{ledger.buffered:,} buffered",
        f"{ledger.indexed:,} indexed",
        f"{ledger.deleted:,} deleted",
        f"{ledger.replaced:,} replaced",
        *([f"{ledger.lost:,} lost"] if ledger.lost else []),
    ]
    verdict = "" if ledger.adds_up else " (DOES NOT ADD UP)"
    return Grid(f"{ledger.accepted:,} accepted = {' + '.join(parts)}{verdict}")


RECEIPT_COLUMNS = ("shard", "rows visible", "rows exact", "nprobe", "nlist", "note")
"""The columns of a receipt: one row for each leaf shard."""


def receipt_grid(receipt: Receipt) -> Grid:
    """Return what an answer covers."""
    title = (
        f"{receipt.shards_answered} of {counted(receipt.shards_total, 'shard')} answered, "
        f"coverage {receipt.coverage:.0%}"
    )
    return Grid(title, RECEIPT_COLUMNS, [receipt_row(shard) for shard in receipt.shards])


def receipt_row(shard: ShardReceipt) -> list[str]:
    """Return one shard's row of a receipt."""
    if shard.missing_reason:
        return [str(shard.shard), *["-"] * 4, f"missing: {shard.missing_reason}"]
    notes = []
    if shard.rows_damaged:
        notes.append(f"{counted(shard.rows_damaged, 'row')} damaged")
    if shard.filter_plan is not None:
        notes.append(f"rows that pass the filter: {shard.rows_passing:,}")
    if shard.exact_reason is not None:
        notes.append(f"exact: {shard.exact_reason.value}")
    searched = [f"{shard.nprobe:,}", f"{shard.nlist:,}"] if shard.nlist else ["-", "-"]
    figures = [f"{shard.rows_visible:,}", f"{shard.rows_exact:,}", *searched]
    return [str(shard.shard), *figures, ", ".join(notes)]


SHARD_COLUMNS = ("shard", "state", "rows", "buffered", "indexed", "nlist", "nprobe", "recall")
"""The columns of a description: one row for each leaf shard."""


def shards_grid(title: str, shards: Sequence[ShardDescription]) -> Grid:
    """Return the parts of a collection."""
    return Grid(title, SHARD_COLUMNS, [shard_row(shard) for shard in shards])


def shard_row(shard: ShardDescription) -> list[str]:
    """Return one shard's row of a description."""
    state = shard.state.value + (" (training)" if shard.training else "")
    ledger = shard.ledger
    rows = [f"{figure:,}" for figure in (ledger.live, ledger.buffered, ledger.indexed)]
    index = [f"{shard.nlist:,}", f"{shard.nprobe:,}", f"{shard.measured_recall:.3f}"]
    return [
        str(shard.shard),
        "missing" if shard.missing_reason else state,
        *rows,
        *(index if shard.nlist else ["-"] * 3),
    ]


def config_text(config: CollectionConfig) -> str:
    """Return a configuration as one line."""
    fields = ", ".join(f"{each.name} {each.type.value}" for each in config.filter_fields)
    return (
        f"{config.name}: dim {config.dim:,}, {config.metric.value}, {config.id_type.value} ids, "
        f"{config.index.kind.value}, target recall {config.target_recall:g}"
        + (f", filter fields: {fields}" if fields else "")
    )


def collection_grids(description: CollectionDescription) -> list[Grid]:
    """Return a collection: its configuration, its ledger, its shards, and what is wrong."""
    wrong = [
        Grid(f"shard {shard.shard} {what}: {reason}")
        for shard in description.shards
        for what, reason in (
            ("is missing", shard.missing_reason),
            ("takes no writes", shard.writes_stopped),
            ("has damaged rows", f"{shard.rows_damaged:,}" if shard.rows_damaged else ""),
        )
        if reason
    ]
    ledger = ledger_grid(description.ledger)
    return [
        Grid(config_text(description.config)),
        shards_grid(ledger.title, description.shards),
        *wrong,
    ]


WHY_EXACT: Final = {
    "requested": "as requested",
    "no_index": "there is no index yet",
    "few_rows": "there are few",
    "cheaper": "the index would take longer",
    "no_parameters": "the index does not reach the target recall",
    "uncalibrated": "the index is not calibrated for so many hits",
    "short": "the index proposes too few",
}
"""Why a search scored every row, by the values of ExactReason."""


def explanation_rows(explanation: Explanation) -> list[tuple[str, str]]:
    """Return the figures of a row that exists, and their values."""
    rows = [
        ("exact rank", f"{explanation.exact_rank:,}"),
        ("score", f"{explanation.score:.6g}"),
        ("shard", str(explanation.shard)),
        ("in the training buffer", "yes" if explanation.buffered else "no"),
    ]
    if not explanation.buffered:
        needed = explanation.nprobe_needed
        rows += [
            ("list", f"{explanation.list:,}"),
            ("rank of the list's centroid", f"{explanation.centroid_rank:,}"),
            ("nprobe needed", f"{needed:,}" if needed else "no nprobe finds it"),
        ]
    if explanation.candidates:
        rows += [
            ("candidates needed at that rank", f"{explanation.candidates_needed:,}"),
            ("candidates of a search by nprobe", f"{explanation.candidates:,}"),
        ]
    if explanation.exact_reason is not None:
        reason = WHY_EXACT[explanation.exact_reason.value]
        rows.append(("default search scores every row", reason))
    return rows


def explanation_grid(explanation: Explanation) -> Grid:
    """Return an explanation as a table of its figures."""
    if explanation.deleted:
        return Grid(f"the row was deleted from shard {explanation.shard}: no search finds it")
    if not explanation.exists:
        return Grid(
            f"there is no such row; shard {explanation.shard} would hold it. It was never written, "
            "or it was deleted before that shard last restarted or compacted its rows"
        )
    hidden = ", hidden by the filter" if explanation.hidden_by_filter else ""
    return Grid(f"explanation{hidden}", ("figure", "value"), explanation_rows(explanation))


def topology_grid(topology: Topology, server: str) -> Grid:
    """Return the leaf shards that a server reaches, and their slots; `server` names the server."""
    reached, total = len(topology.shards), topology.shards_total
    known = f"{reached:,} of {counted(total, 'shard')}" if total else counted(reached, "shard")
    rows = [
        [str(each.shard), ", ".join(f"{first}-{last}" for first, last in each.slots)]
        for each in topology.shards
    ]
    title = f"{server}, {topology.role.value} of cluster {topology.cluster}, reaches {known}"
    return Grid(title, ("shard", "slots"), rows)
