"""The tables that commands print: hits, receipts, ledgers, collections; on a terminal or in a log.

Vocabulary in, rich tables out. Nothing here asks a server or prints.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from vectorshard.shard.descriptions import CollectionDescription, Scrub, ShardDescription
from vectorshard.shard.membership import AcceptedLoss, Problem
from vectorshard.shard.texts import counted
from vectorshard.shard.types import CollectionConfig, Ledger, Receipt, ShardReceipt

if TYPE_CHECKING:
    from vectorshard.client.results import Hit, Row


class FittedTable(Table):
    """A table that never breaks a word: its columns of prose are folded between words.

    On a narrow terminal its columns move together. Where even their longest words are wider than
    that, it is printed as records.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or one block of names and values for each of its rows."""
        widths = self._widths(console, options)
        if not widths:
            self.padding = _NO_PADDING
            widths = self._widths(console, options)
        if widths:
            for column, width in zip(self.columns, widths, strict=True):
                column.width = width
            yield from super().__rich_console__(console, options)
            return
        yield Text.assemble((str(self.title), "bold"), "\n")
        names = [str(column.header) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            record = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
            record.add_column(no_wrap=True)
            record.add_column(overflow="fold")
            for name, cell in zip(names, cells, strict=True):
                if cell != "":
                    record.add_row(name, cell)
            yield record
            yield ""

    def _widths(self, console: Console, options: ConsoleOptions) -> list[int]:
        """Return the width of each column, without padding; none if they do not fit.

        The widest columns give way first, down to their longest words.
        """
        sizes = [self._measure(console, options, column) for column in self.columns]
        _, right, _, left = self.padding
        frame = len(self.columns) * (left + right + 1) + 1
        room = options.max_width - frame
        if sum(least for least, _ in sizes) > room:
            return []
        widths = [wanted for _, wanted in sizes]
        while sum(widths) > room:
            width, place = max(
                (width, place) for place, width in enumerate(widths) if width > sizes[place][0]
            )
            widths[place] = width - 1
        return widths

    @staticmethod
    def _measure(console: Console, options: ConsoleOptions, column: Column) -> tuple[int, int]:
        """Return the longest word and the longest line of a column, its header included."""
        cells = [
            Measurement.get(console, options.update(width=_ANY_WIDTH), cell)
            for cell in (column.header, *column.cells)
        ]
        return max(each.minimum for each in cells), max(each.maximum for each in cells)


_ANY_WIDTH: Final = 10_000
_NO_PADDING: Final = (0, 0, 0, 0)
"""One blank separates the columns: their border."""


def plain_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Return an empty table: `left` columns of words, then `right` columns of figures."""
    table = FittedTable(title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", overflow="fold")
    return table


def hits_table(title: str, queries: Iterable[tuple[str, Iterable[Hit]]]) -> Table:
    """Return one row for each hit; the first hit of a query shows the query's name.

    Metadata is shown where the search asked for it.
    """
    listed = [(name, [*hits]) for name, hits in queries]
    with_metadata = any(hit.metadata is not None for _, hits in listed for hit in hits)
    table = plain_table(title, ["query", "id"], ["rank", "score"])
    if with_metadata:
        table.add_column("metadata", overflow="fold")
    for name, hits in listed:
        for rank, hit in enumerate(hits, start=1):
            shown = Text(name if rank == 1 else "")  # Text: rich reads brackets in a str as markup
            metadata = [Text(json.dumps(hit.metadata or {}, ensure_ascii=False))]
            table.add_row(
                shown,
                Text(str(hit.id)),
                str(rank),
                f"{hit.score:.6g}",
                *(metadata if with_metadata else []),
            )
    return table


def rows_table(title: str, rows: Iterable[Row]) -> Table:
    """Return one line for each row: its id, its metadata, and its vector where it is there."""
    listed = [*rows]
    with_vectors = any(row.vector is not None for row in listed)
    table = plain_table(title, ["id", "metadata", *(["vector"] if with_vectors else [])], [])
    for row in listed:
        vector = [] if row.vector is None else [" ".join(f"{each:g}" for each in row.vector)]
        metadata = json.dumps(row.metadata or {}, ensure_ascii=False)
        table.add_row(Text(str(row.id)), Text(metadata), *vector)
    return table


IDS_SHOWN: Final = 10
"""Damaged ids that a line names."""


def receipt_table(receipt: Receipt) -> Table:
    """Return what the answer covers: one row per leaf shard.

    With a filter, it also shows how many rows pass, and the plan by which they were found; and how
    many queries were answered by scoring every row, and why. Damaged rows have a column if there
    are some: the answer leaves them out.
    """
    filtered = any(shard.filter_plan for shard in receipt.shards)
    exact = any(shard.exact_reason for shard in receipt.shards)
    damaged = any(shard.rows_damaged for shard in receipt.shards)
    figures = ["rows visible", "rows exact", "nprobe", "nlist", "generation"]
    table = plain_table(
        f"receipt: {receipt.shards_answered} of {counted(receipt.shards_total, 'shard')} answered, "
        f"coverage {receipt.coverage:.0%}",
        ["shard", "answered"],
        figures
        + (["rows passing", "filter plan"] if filtered else [])
        + (["queries exact", "reason"] if exact else [])
        + (["rows damaged"] if damaged else []),
    )
    for shard in receipt.shards:
        plan = shard.filter_plan
        of_filter = [f"{shard.rows_passing:,}", plan.name] if plan else ["-"] * 2
        reason = shard.exact_reason
        of_exact = [f"{shard.queries_exact:,}", reason.name] if reason else ["-"] * 2
        table.add_row(
            *receipt_cells(shard),
            *(of_filter if filtered else []),
            *(of_exact if exact else []),
            *([f"{shard.rows_damaged:,}"] if damaged else []),
        )
    return table


def receipt_cells(shard: ShardReceipt) -> list[str | Text]:
    """Return one shard's row of the receipt."""
    if shard.missing_reason:
        return [str(shard.shard), Text(f"no: {shard.missing_reason}"), *["-"] * 5]
    effort = [f"{figure:,}" for figure in (shard.nprobe, shard.nlist, shard.generation)]
    if not shard.nlist:  # no index was searched
        effort = ["-"] * 3
    return [str(shard.shard), "yes", f"{shard.rows_visible:,}", f"{shard.rows_exact:,}", *effort]


def ledger_table(description: CollectionDescription) -> Table:
    """Return where every accepted row is: one row per leaf shard, and their sum."""
    total = description.ledger
    verdict = "adds up" if adds_up(description) else "DOES NOT ADD UP"
    table = plain_table(
        f"ledger of {description.config.name}: {total.accepted:,} accepted, {verdict}",
        ["shard", "state"],
        ["accepted", "= buffered", "+ indexed", "+ deleted", "+ replaced", "+ lost"],
    )
    for shard in description.shards:
        table.add_row(str(shard.shard), state_of(shard), *ledger_cells(shard.ledger))
    table.add_section()
    table.add_row("all", "", *ledger_cells(total), style="bold")
    return table


def adds_up(description: CollectionDescription) -> bool:
    """Whether every accepted row of every shard is in exactly one place."""
    return all(shard.ledger.adds_up for shard in description.shards)


def ledger_cells(ledger: Ledger) -> list[str]:
    """Return the figures of a ledger in the order of its equation."""
    figures = (
        ledger.accepted,
        ledger.buffered,
        ledger.indexed,
        ledger.deleted,
        ledger.replaced,
        ledger.lost,
    )
    return [f"{figure:,}" for figure in figures]


def state_of(shard: ShardDescription) -> str:
    """Return the state of a shard's index, and whether a new index is training.

    MISSING for a shard that does not serve its rows.
    """
    if shard.missing_reason:
        return "MISSING"
    state = shard.state.name
    return f"{state} + training" if shard.training and state == "TRAINED" else state


def index_table(description: CollectionDescription) -> Table:
    """Return each leaf shard's index and what it costs."""
    config = description.config
    table = plain_table(
        f"index: {config.index.kind.name}, recommended batch {description.recommended_batch_size}",
        ["shard", "kind"],
        ["nlist", "nprobe", "rows trained on", "imbalance", "training time", "memory", "disk"],
    )
    for shard in description.shards:
        trained = [
            "-" if shard.index_kind is None else shard.index_kind.name,
            f"{shard.nlist:,}",
            f"{shard.nprobe:,}",
            f"{shard.rows_trained_on:,}",
            f"{shard.list_imbalance:.2f}",
            f"{shard.last_training_s:.2f} s",
        ]
        table.add_row(
            str(shard.shard),
            *(trained if shard.nlist else ["-"] * len(trained)),
            f"{shard.memory_bytes / 1e6:,.1f} MB",
            f"{shard.disk_bytes / 1e6:,.1f} MB",
        )
    return table


def recall_table(description: CollectionDescription) -> Table:
    """Return the recall of each leaf shard's index: as calibrated, and of live queries.

    "calibrated" is that of distinct rows, "by list" that of rows with each list equally likely,
    "calibrated on" the sample's queries and the rows that it was drawn from.
    """
    table = plain_table(
        f"recall@10, target {description.config.target_recall:g}",
        ["shard"],
        [
            "calibrated",
            "by list",
            "calibrated on",
            "changed since",
            "live",
            "live queries",
            "drift",
        ],
    )
    for shard in description.shards:
        calibrated = [
            f"{shard.measured_recall:.3f}",
            f"{shard.measured_recall_balanced:.3f}",
            f"{shard.calibration_queries:,} of {shard.calibration_rows:,}",
            f"{shard.rows_changed_since:,}",
        ]
        table.add_row(
            str(shard.shard),
            *(calibrated if shard.nlist else ["-"] * 4),
            f"{shard.live_recall:.3f}" if shard.live_queries else "-",
            f"{shard.live_queries:,}",
            f"{shard.drift:.2f}" if shard.drift else "-",
        )
    return table


def scrub_table(description: CollectionDescription) -> Table:
    """Return what each leaf shard's scrub has verified, and the sum of its content hashes."""
    table = plain_table(
        "scrub: a background verification of all that is stored",
        ["shard", "last pass", "read", "content sum"],
        ["passes", "present pass", "rows verified", "rows damaged", "findings"],
    )
    for shard in description.shards:
        scrub = shard.scrub or Scrub()
        ended = datetime.fromtimestamp(scrub.last_pass_at, UTC) if scrub.last_pass_at else None
        table.add_row(
            str(shard.shard),
            "-" if ended is None else ended.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "-" if ended is None else "disk" if scrub.last_pass_read_disk else "page cache",
            shard.content_sum.hex() or "-",
            f"{scrub.passes:,}",
            f"{scrub.progress:.0%}",
            f"{scrub.rows:,}",
            f"{shard.rows_damaged:,}",
            f"{scrub.findings_total:,}",
        )
    return table


def scrub_findings(description: CollectionDescription) -> list[str]:
    """Return one line for each finding of the scrubs."""
    return [
        f"scrub of shard {shard.shard}: {text}"
        for shard in description.shards
        if shard.scrub is not None
        for text in shard.scrub.findings
    ]


@dataclass(frozen=True, slots=True)
class MeasuredRecall:
    """The recall of searches for k hits, and what they cost.

    `target` is None for an exact search; `error` is the standard error of `recall`.
    """

    k: int
    target: float | None
    recall: float
    error: float
    query_s: float
    receipt: Receipt


def measured_recall_table(name: str, queries: int, figures: Sequence[MeasuredRecall]) -> Table:
    """Return one row for each number of hits and target: the largest effort of any shard."""
    table = plain_table(
        f"recall of {name}, {queries:,} of its rows as queries",
        [],
        ["k", "target", "recall", "+-", "ms a query", "nprobe", "candidates"],
    )
    for place, each in enumerate(figures):
        if place and each.k != figures[place - 1].k:
            table.add_section()
        nprobe = max(shard.nprobe for shard in each.receipt.shards)
        candidates = max(shard.candidates for shard in each.receipt.shards)
        missed = each.target is not None and each.recall < each.target - 2 * each.error
        table.add_row(
            f"{each.k:,}",
            "exact" if each.target is None else f"{each.target:g}",
            Text(f"{each.recall:.3f}", style="red" if missed else ""),
            f"{each.error:.3f}",
            f"{1_000 * each.query_s:.3f}",
            f"{nprobe:,}" if nprobe else "all rows",
            f"{candidates:,}" if candidates else "-",
        )
    return table


def troubles(description: CollectionDescription) -> list[str]:
    """Return a line for each shard that misses rows, has damaged ones, takes no writes, or keeps
    former files.
    """
    lines = []
    for shard in description.shards:
        if shard.missing_reason:
            lines.append(f"shard {shard.shard} is missing: {shard.missing_reason}")
        if shard.writes_stopped:
            lines.append(f"shard {shard.shard} takes no writes: {shard.writes_stopped}")
        if shard.rows_damaged:
            lines.append(f"shard {shard.shard} has {damaged_rows(shard)}")
        if shard.kept_files:
            lines.append(f"shard {shard.shard} keeps files: {shard.kept_files}")
    return lines


def damaged_rows(shard: ShardDescription) -> str:
    """Return how many rows of a shard are damaged, the ids of some, and what to do."""
    ids = ", ".join(map(repr, shard.damaged_ids[:IDS_SHOWN]))
    others = shard.rows_damaged - min(len(shard.damaged_ids), IDS_SHOWN)
    more = f" and {counted(others, 'other')}" if others else ""
    return (
        f"{counted(shard.rows_damaged, 'damaged row')}, left out of searches: ids {ids}{more}. "
        "Upsert or delete these ids to heal them, and check the disk"
    )


def origins(description: CollectionDescription) -> list[str]:
    """Return from which backups the shards of a collection were restored."""
    found = dict.fromkeys(each.restored_from for each in description.shards if each.restored_from)
    return [f"restored from {backup}; the ledger counts from the restore" for backup in found]


def problems_table(problems: Iterable[Problem]) -> Table:
    """Return one row for each problem of a server."""
    table = plain_table("problems", ["shard", "collection", "kind", "what to do"], [])
    for problem in problems:
        table.add_row(
            str(problem.shard),
            Text(problem.collection or "all"),
            problem.kind.name,
            Text(problem.text),
        )
    return table


def losses_table(shard: int, losses: Sequence[AcceptedLoss]) -> Table:
    """Return what a shard has lost: one row for each collection.

    "remembered" are the rows that others know it had accepted; without a witness it is unknown.
    """
    table = plain_table(
        f"what shard {shard} has lost",
        ["collection", "why"],
        ["accepted there", "remembered", "lost"],
    )
    for loss in losses:
        witnessed = loss.witnessed_accepted
        lost = None if witnessed is None else max(0, witnessed - loss.accepted)
        table.add_row(
            Text(loss.collection),
            Text(loss.reason),
            f"{loss.accepted:,}",
            "unknown" if witnessed is None else f"{witnessed:,}",
            "unknown" if lost is None else f"{lost:,}",
        )
    return table


@dataclass(frozen=True, slots=True)
class CollectionSummary:
    """The rows of a collection, None if they are unknown, and the states of its shards."""

    rows: int | None
    state: str


def states_of(description: CollectionDescription) -> str:
    """Return the state of a collection's shards: TRAINED, or 2 TRAINED, 1 MISSING."""
    shards_in = Counter(state_of(shard) for shard in description.shards)
    if len(shards_in) == 1:
        return next(iter(shards_in))
    return ", ".join(f"{shards} {state}" for state, shards in shards_in.items())


def collections_table(
    collections: Sequence[tuple[CollectionConfig, CollectionSummary | None]],
) -> Table:
    """Return one row per collection; without summaries, its configuration alone."""
    summaries = any(summary is not None for _, summary in collections)
    left = ["name", *(["state"] if summaries else []), "metric", "ids", "index"]
    right = [*(["rows"] if summaries else []), "dim", "recall"]
    table = plain_table("collections", left, right)
    for config, summary in collections:
        rows = "-" if summary is None or summary.rows is None else f"{summary.rows:,}"
        table.add_row(
            config.name,
            *([] if summary is None else [summary.state]),
            config.metric.name,
            config.id_type.name,
            config.index.kind.name,
            *([rows] if summaries else []),
            f"{config.dim:,}",
            f"{config.target_recall:g}",
        )
    return table
