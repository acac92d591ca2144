"""Compares what an index holds with what it should hold: its rows, their codes, what it trained.

Lists are copied while nothing is added to the index, and compared afterwards. To encode a row
again gives the same code, in any batch; which list it belongs to may depend on the batch (FAISS
rounds otherwise for many rows than for one), so a row counts as sound in any list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import faiss
import numpy as np

from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.types import BoolArray, Float32Array, IndexKind, Int64Array, UInt8Array

_NEARLY: Final = 1.0 + 1e-4


@dataclass(frozen=True, slots=True)
class HeldRows:
    """What the index `ivf` holds of a range of rows: `rows` int64 (rows,), which may repeat.

    `lists` int64 (rows,) hold them; `codes` uint8 (rows, bytes); None if not asked for.
    """

    ivf: IvfIndex
    rows: Int64Array
    lists: Int64Array
    codes: UInt8Array | None

    def of(self, first: int, last: int) -> HeldRows:
        """Return those of the rows in [first, last); the rows ascend."""
        here = slice(*np.searchsorted(self.rows, [first, last]).tolist())
        codes = None if self.codes is None else self.codes[here]
        return HeldRows(self.ivf, self.rows[here], self.lists[here], codes)

    @classmethod
    def joined(cls, parts: Sequence[HeldRows]) -> HeldRows:
        """Return the rows of several parts of one index, ascending."""
        rows = np.concatenate([part.rows for part in parts])
        lists = np.concatenate([part.lists for part in parts])
        codes = [part.codes for part in parts if part.codes is not None]
        order = np.argsort(rows, kind="stable")
        joined = np.concatenate(codes)[order] if codes else None
        return cls(parts[0].ivf, rows[order], lists[order], joined)


@dataclass(frozen=True, slots=True)
class ListCopy:
    """A copy of a part of a list: `rows` int64 (rows,), at `places` of the `packed` codes."""

    number: int
    rows: Int64Array
    places: Int64Array
    packed: UInt8Array | None


class CodeCheck:
    """Checks one index."""

    def __init__(self, ivf: IvfIndex) -> None:
        self.ivf = ivf
        self._index = index = ivf.faiss_index
        self._code_bytes = int(index.code_size)
        self._lists = faiss.downcast_InvertedLists(index.invlists)
        self._of_blocks = ivf.kind is IndexKind.IVF_PQ

    def unknown_in(self, list_: int, until: int) -> int:
        """Count the rows of a list that are not in [0, until). Nothing may be added meanwhile."""
        rows = self._rows_of(list_)
        return int(np.count_nonzero((rows < 0) | (rows >= until)))

    def copied(self, list_: int, first: int, last: int, *, with_codes: bool) -> ListCopy:
        """Copy what a list holds of the rows in [first, last). Nothing may be added meanwhile."""
        rows = self._rows_of(list_)
        places = np.flatnonzero((rows >= first) & (rows < last))
        packed, offset = np.zeros(0, np.uint8), 0
        if with_codes and len(places):
            packed, offset = self._packed(list_, len(rows), places)
        return ListCopy(list_, rows[places], places - offset, packed if with_codes else None)

    def held(self, copies: Sequence[ListCopy]) -> HeldRows:
        """Return what copies of lists hold, in their order; all with codes or none."""
        codes = None
        if copies[0].packed is not None:
            codes = np.concatenate([self._unpacked(each) for each in copies])
        lists = np.repeat([each.number for each in copies], [len(each.rows) for each in copies])
        return HeldRows(self.ivf, np.concatenate([each.rows for each in copies]), lists, codes)

    def _rows_of(self, list_: int) -> Int64Array:
        """Return the rows of a list: a view into the index."""
        rows = int(self._lists.list_size(list_))
        if not rows:
            return np.zeros(0, np.int64)
        held: Int64Array = faiss.rev_swig_ptr(self._lists.get_ids(list_), rows)
        return held

    def _packed(self, list_: int, rows: int, places: Int64Array) -> tuple[UInt8Array, int]:
        """Copy the codes from the first to the last of some places of a list of so many rows.

        As FAISS packs them, in whole blocks; the second value is the place of the first copied.
        """
        lists, first, last = self._lists, int(places[0]), int(places[-1]) + 1
        in_block, block_bytes = 1, self._code_bytes
        if self._of_blocks:
            in_block, block_bytes = int(lists.n_per_block), int(lists.block_size)
        begin, end = first // in_block, -(-last // in_block)
        codes = faiss.rev_swig_ptr(lists.get_codes(list_), -(-rows // in_block) * block_bytes)
        return codes[begin * block_bytes : end * block_bytes].copy(), begin * in_block

    def _unpacked(self, copy: ListCopy) -> UInt8Array:
        """Return the codes of the rows in a copy, uint8 (rows, bytes)."""
        assert copy.packed is not None
        packed, code_bytes = copy.packed, self._code_bytes
        if not self._of_blocks:
            return np.asarray(packed.reshape(-1, code_bytes)[copy.places])
        in_block, block_bytes = int(self._lists.n_per_block), int(self._lists.block_size)
        blocks = len(packed) // block_bytes
        unpacked = np.zeros((blocks * in_block, code_bytes), np.uint8)
        unpack = self._lists.packer.unpack_all
        for block in range(blocks):
            unpack(
                faiss.swig_ptr(packed[block * block_bytes :]),
                faiss.swig_ptr(unpacked[block * in_block :]),
            )
        return np.asarray(unpacked[copy.places])

    def are_wrong(self, held: HeldRows, vectors: Float32Array) -> BoolArray:
        """Return whether the code of each row differs from that of its vector, (rows, dim)."""
        rows = len(held.rows)
        if not rows or held.codes is None:
            return np.zeros(rows, dtype=np.bool_)
        encoded = np.empty((rows, self._code_bytes), np.uint8)
        padded = self.ivf.as_held(vectors)
        self._index.encode_vectors(rows, *map(faiss.swig_ptr, (padded, held.lists, encoded)), False)
        wrong: BoolArray = (held.codes != encoded).any(axis=1)
        if wrong.any():
            # Another processor may round to the other of two code words that are equally near.
            suspects = np.flatnonzero(wrong)
            lists = held.lists[suspects]
            errors = self._errors(padded[suspects], held.codes[suspects], lists)
            least = self._errors(padded[suspects], encoded[suspects], lists)
            wrong[suspects] = ~(errors <= least * _NEARLY)
        return wrong

    def _errors(self, vectors: Float32Array, codes: UInt8Array, lists: Int64Array) -> Float32Array:
        """Return the squared distance of vectors to what the codes stand for. (rows,)"""
        codes = np.ascontiguousarray(codes)
        if self.ivf.kind is IndexKind.IVF_PQ:
            decoded = self._index.pq.decode(codes)
        else:
            decoded = np.empty_like(vectors)
            arrays = codes, lists, decoded
            self._index.decode_vectors(len(vectors), *map(faiss.swig_ptr, arrays))
        errors: Float32Array = np.square(vectors.astype(float) - decoded).sum(axis=1)
        return errors

    def trained(self) -> list[UInt8Array]:
        """Return what training made, which never changes afterwards: centroids and code books."""
        index = self._index
        flat = faiss.downcast_index(index.quantizer)
        parts = [faiss.rev_swig_ptr(flat.get_xb(), int(index.nlist) * int(index.d))]
        if self.ivf.kind is IndexKind.IVF_PQ:
            parts.append(faiss.vector_to_array(index.pq.centroids))
        elif self.ivf.kind is IndexKind.IVF_SQ8:
            parts.append(faiss.vector_to_array(index.sq.trained))
        return [part.view(np.uint8) for part in parts]
