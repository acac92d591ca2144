"""What `vectorshard explain` prints: a sentence, and a table of its figures.

Vocabulary in, text and a rich table out. Nothing here asks a server or prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rich.table import Table

from vectorshard.cli.tables import plain_table
from vectorshard.shard.descriptions import Explanation
from vectorshard.shard.texts import WHY_EXACT, explanation_rows
from vectorshard.shard.types import ShardReceipt

HITS: Final = 10
"""The default k of a search."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Whether a search without stated effort found the id, and the receipt of the id's shard."""

    found: bool
    receipt: ShardReceipt


def sentence_of(
    explanation: Explanation,
    *,
    collection: str,
    id_: str,
    query: str,
    rows: int,
    tried: Tried | None,
) -> str:
    """Return the explanation as sentences, which name the id and the query so.

    The id ranks among the live `rows` of the collection. `tried` is a search for HITS hits; None if
    its outcome is known without it: see `is_worth_trying`.
    """
    if explanation.deleted:
        return f"{id_} was deleted from {collection}: no search finds it."
    if not explanation.exists:
        return (
            f"There is no {id_} in {collection}: it was never written, or it was deleted before "
            "its shard last restarted or compacted its rows."
        )
    said = [f"{id_} ranks {ordinal(explanation.exact_rank)} of {rows:,} for {query}."]
    said.append(_buffered(explanation) if explanation.buffered else _indexed(explanation))
    if explanation.hidden_by_filter:
        return " ".join([*said, "The filter excludes it."])
    if explanation.exact_rank > HITS:
        said.append(f"Only a search for {explanation.exact_rank:,} hits or more returns it.")
    if tried is not None:
        said.append(_outcome(explanation, tried))
    return " ".join(said)


def is_worth_trying(explanation: Explanation) -> bool:
    """Whether only a trial shows if a search for HITS hits finds the id."""
    hidden = not explanation.exists or explanation.hidden_by_filter
    return not hidden and not explanation.buffered and explanation.exact_rank <= HITS


def _buffered(explanation: Explanation) -> str:
    return (
        f"It is in the training buffer of shard {explanation.shard}, which every search scores "
        "exactly, at any nprobe."
    )


def _indexed(explanation: Explanation) -> str:
    rank, nprobe = explanation.centroid_rank, explanation.nprobe_needed
    nearest = "the nearest" if rank == 1 else f"the {ordinal(rank)} nearest"
    place = (
        f"It is in list {explanation.list:,} of shard {explanation.shard}, {nearest} to the query"
    )
    if nprobe:
        finds = "finds" if explanation.exact_rank <= HITS else "reaches"
        less = ", and a smaller nprobe does not" if nprobe > 1 else ""
        return f"{place}: nprobe {nprobe:,} {finds} it{less}."
    return (
        f"{place}, but its code ranks only {ordinal(explanation.candidates_needed)} there, and a "
        f"search by nprobe for {HITS} hits scores only {explanation.candidates:,} candidates: "
        "no nprobe finds it."
    )


def _outcome(explanation: Explanation, tried: Tried) -> str:
    nprobe, reason = tried.receipt.nprobe, explanation.exact_reason
    # After deletes a search skips lists without live rows; centroid_rank counts them.
    lists = "lists that hold live rows" if tried.receipt.queries_widened else "lists"
    effort = f"probes {nprobe:,} {lists}" if nprobe else "scores every row"
    if reason is not None:
        effort = f"scores every row ({WHY_EXACT[reason.value]})"
    if tried.found:
        return f"The default search {effort} and finds it."
    nprobe = explanation.nprobe_needed
    other = f"--nprobe {nprobe} or " if nprobe else ""
    return f"The default search {effort} and does not find it: use {other}--exact."


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th ... 11th, 12th, 13th ... 21st."""
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    if number % 100 in {11, 12, 13}:
        suffix = "th"
    return f"{number:,}{suffix}"


def explanation_table(explanation: Explanation, *, tried: Tried | None) -> Table:
    """Return the figures of an id that exists, and of the search that was tried."""
    table = plain_table("explanation", ["figure"], ["value"])
    for figure, value in explanation_rows(explanation):
        table.add_row(figure, value)
    if explanation.exact_reason is None and tried is not None and tried.receipt.nprobe:
        table.add_row("nprobe of the default search", f"{tried.receipt.nprobe:,}")
        table.add_row("candidates of the default search", f"{tried.receipt.candidates:,}")
    if tried is not None:
        table.add_row("found by the default search", "yes" if tried.found else "no")
    return table
