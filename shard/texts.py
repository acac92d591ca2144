"""How results and descriptions read: as text where they are printed, as HTML in a notebook.

Grids of words in, text out. What a grid of a class of the vocabulary contains is here, too, so that
the vocabulary itself stays a list of fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
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
