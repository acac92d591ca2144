"""The scrub of the index: each live absorbed row is in it once, in a list, with the code that it
encodes to; no other rows are; and what training made has not changed.

What the index holds of rows that it absorbed before never changes, so lists that are copied one
after the other fit together as long as the index is the same.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

import numpy as np

from vectorshard.shard.engine.maintenance import Maintenance
from vectorshard.shard.engine.scrub_findings import Findings, Piece
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.index.code_check import CodeCheck, HeldRows
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.texts import counted
from vectorshard.shard.types import BoolArray, Float32Array

LISTS_AT_ONCE: Final = 64
"""Lists copied in a piece, each with a separate hold of the lock."""

WINDOW_ROWS: Final = 32_768
"""Rows whose codes are copied at a time, at least. More: more memory, fewer passes over the lists;
a sixteenth of the index at least."""

IN_FULL_EVERY: Final = 8
"""Windows of which one has its codes encoded again, and its filter columns compared; another one in
each pass. Both cost more than all else together."""


class IndexScrub:
    """Checks the indexes of one collection, pass by pass. One thread uses it."""

    def __init__(
        self, state: CollectionState, maintenance: Maintenance, findings: Findings
    ) -> None:
        self._state = state
        self._maintenance = maintenance
        self._findings = findings
        self._trained: tuple[IvfIndex, int] | None = None  # with its checksum when first seen
        self._asked_for: IvfIndex | None = None  # the index to be replaced
        self._wrong_codes = 0

    def window_rows(self) -> int:
        """Return how many rows the next `held` should cover."""
        return max(WINDOW_ROWS, self._state.snapshot.absorbed_until // 16)

    def held(
        self, first: int, last: int, *, with_codes: bool
    ) -> Generator[Piece, None, HeldRows | None]:
        """Copy, in pieces, what the index holds of the rows in [first, last); check that it is all.

        Returns None if there is no index, or if another was published meanwhile.
        """
        with self._state.index_at_rest() as before:
            index = before.index
        until = min(last, before.absorbed_until)
        if index is None or until <= first:
            return None
        del before  # a snapshot that is held keeps the garbage of a compaction
        check, unknown, parts = CodeCheck(index.ivf), 0, list[HeldRows]()
        for begin in range(0, index.ivf.nlist, LISTS_AT_ONCE):
            copies = []
            for list_ in range(begin, min(begin + LISTS_AT_ONCE, index.ivf.nlist)):
                with self._state.index_at_rest() as snapshot:
                    if not self._is_published(index.ivf):
                        return None
                    if first == 0:  # once a pass
                        unknown += check.unknown_in(list_, snapshot.absorbed_until)
                    copies.append(check.copied(list_, first, until, with_codes=with_codes))
                    del snapshot
            parts.append(check.held(copies))
            yield Piece()
        held = HeldRows.joined(parts)
        self._check_rows(index.ivf, held, first, until, unknown)
        return held

    def _is_published(self, ivf: IvfIndex) -> bool:
        index = self._state.snapshot.index
        return index is not None and index.ivf is ivf

    def _check_rows(
        self, ivf: IvfIndex, held: HeldRows, first: int, until: int, unknown: int
    ) -> None:
        live = self._state.snapshot.hidden.live_rows(first, until)
        distinct = held.rows[np.diff(held.rows, prepend=-1) != 0]
        places = np.searchsorted(distinct, live)
        found = np.append(distinct, -1)[places] == live
        missing = len(live) - int(np.count_nonzero(found))
        repeated = len(held.rows) - len(distinct)
        for number, what in (
            (missing, "lacked {} that it should hold"),
            (repeated, "held {} more than once"),
            (unknown, "held {} that should not be in it"),
        ):
            if number:
                self._rebuild(ivf, what.format(counted(number, "row")))

    def check_codes(self, held: HeldRows, ours: BoolArray, vectors: Float32Array) -> None:
        """Encode the vectors of some `held` rows again: `ours` of them, in the given order."""
        if held.codes is None or not ours.any():
            return
        some = HeldRows(held.ivf, held.rows[ours], held.lists[ours], held.codes[ours])
        wrong = CodeCheck(held.ivf).are_wrong(some, vectors[ours])
        if wrong.any() and self._is_published(held.ivf):
            self._rebuild(held.ivf, f"held wrong codes of {counted(int(wrong.sum()), 'row')}")

    def check_trained(self) -> None:
        """Compare what training made with what it was when the scrub first saw this index."""
        with self._state.index_at_rest() as snapshot:
            index = snapshot.index
        if index is None:
            self._trained = None
            return
        found = checksum(*CodeCheck(index.ivf).trained())
        if self._trained is None or self._trained[0] is not index.ivf:
            self._trained = index.ivf, found
        elif self._trained[1] != found:
            self._rebuild(index.ivf, "had changed centroids or code books")

    def _rebuild(self, ivf: IvfIndex, what: str) -> None:
        """Ask once for an index in place of this one."""
        self._findings.add(f"the index {what}; a new one is trained")
        if self._asked_for is not ivf:
            self._asked_for = ivf
            self._maintenance.ask_for_training()
