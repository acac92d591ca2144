"""Reads the log of a damaged row store frame by frame, further than SQLite does.

SQLite takes a log for ended at the first frame that does not match its checksum. Each checksum
continues the one before it, so what follows a damaged frame can still be verified from the checksum
that is stored in that frame. The checksum is linear modulo 2**32 as well: damage within one byte
shows which byte it was, and is undone. Frames that stay damaged are kept as they are: each record
has its own checksum. The format is SQLite's (sqlite.org/fileformat2.html, section 4). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vectorshard.shard.types import UInt32Array

HEAD_BYTES: Final = 32
FRAME_HEAD_BYTES: Final = 24
_MAGIC: Final = 0x377F0682  # its lowest bit: the checksums are of big-endian words
_SALT_BYTES_SAME: Final = 7
_PAGES_BEYOND: Final = 1 << 20


@dataclass(slots=True)
class LogPages:
    """What a log holds: the newest image of each page, as of the last transaction that ended.

    `frames` is how many there are of its last round. `undone` are notes of damage that was undone,
    `damaged` the numbers of frames that stay damaged.
    """

    pages: dict[int, bytes] = field(default_factory=dict)
    frames: int = 0
    undone: list[str] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)


def read_log(contents: bytes, page_bytes: int) -> LogPages:
    """Return what a log holds. `page_bytes` is the size of a page of its database."""
    found = LogPages()
    count = (len(contents) - HEAD_BYTES) // (FRAME_HEAD_BYTES + page_bytes)
    if count <= 0:
        return found
    log = _Log(contents, page_bytes, count)
    found.frames = log.count
    log.verify(found)
    waiting: dict[int, bytes] = {}
    for number, page, total in log.frames(found):
        waiting[number] = page
        if total:
            found.pages.update(waiting)
            waiting = {}
    return found


class _Log:
    """The frames of a log's last round: what follows them is of earlier rounds."""

    def __init__(self, contents: bytes, page_bytes: int, count: int) -> None:
        self._head = np.frombuffer(contents[:HEAD_BYTES], dtype=">u4").astype(np.uint32)
        frames = np.frombuffer(
            contents, np.uint8, count * (FRAME_HEAD_BYTES + page_bytes), HEAD_BYTES
        )
        self._frames = frames.reshape(count, FRAME_HEAD_BYTES + page_bytes).copy()
        self.count = self._frames_of_last_round()
        self._weights = _weights((page_bytes + 8) // 4)
        (self._order,) = self._byte_orders()[:1]

    @property
    def _fields(self) -> UInt32Array:
        heads = np.ascontiguousarray(self._frames[:, :FRAME_HEAD_BYTES])
        return heads.view(">u4").astype(np.uint32)

    def _frames_of_last_round(self) -> int:
        """Return how many frames have the salts of the header, but for a damaged byte."""
        salts = self._frames[:, 8:16]
        own = self._head[4:6].astype(">u4").view(np.uint8)
        if not self._head_is_sound():
            votes = [own.tobytes(), *(salt.tobytes() for salt in salts[:3])]
            own = np.frombuffer(max(votes[::-1], key=votes.count), np.uint8)
        same = (salts == own).sum(axis=1) >= _SALT_BYTES_SAME
        return int(np.flatnonzero(same)[-1]) + 1 if same.any() else 0

    def _head_is_sound(self) -> bool:
        for order in (">u4", "<u4"):
            words = self._head[:6].astype(">u4").view(order).astype(np.uint32)
            if np.array_equal(_combined((0, 0), words, _weights(6)), self._head[6:8]):
                return True
        return False

    def _byte_orders(self) -> list[str]:
        """Return the byte order of the words, the likeliest first."""
        orders = ["<u4", ">u4"]
        if self.count < 2:
            return orders[::-1] if self._head[0] & 1 else orders
        stored = self._fields[: self.count, 4:6]
        fits = {
            order: sum(
                np.array_equal(self._sum(frame, stored[frame - 1], order), stored[frame])
                for frame in range(1, min(self.count, 5))
            )
            for order in orders
        }
        return sorted(orders, key=lambda order: -fits[order])

    def _words(self, frame: int, order: str) -> UInt32Array:
        parts = (self._frames[frame, :8], self._frames[frame, FRAME_HEAD_BYTES:])
        return np.concatenate(parts).view(order).astype(np.uint32)

    def _sum(self, frame: int, before: UInt32Array, order: str) -> UInt32Array:
        """Return the checksum of a frame that continues `before`."""
        return _combined(before.tolist(), self._words(frame, order), self._weights)

    # ---- verification ---------------------------------------------------------------------------

    def verify(self, found: LogPages) -> None:
        """Undo what can be undone; note that, and which frames stay damaged."""
        if not self.count:
            return
        stored = self._fields[: self.count, 4:6].copy()
        before = self._head[6:8]
        for frame in range(self.count):
            computed = self._sum(frame, before, self._order)
            if not np.array_equal(computed, stored[frame]):
                note = self._undone(frame, before, computed, stored)
                if note is None:
                    found.damaged.append(frame)
                elif note:
                    found.undone.append(f"log frame {frame}: {note}")
            before = stored[frame]

    def _undone(
        self, frame: int, before: UInt32Array, computed: UInt32Array, stored: UInt32Array
    ) -> str | None:
        """Undo damage of one byte in a frame; return a note, or None if it stays damaged."""
        if frame + 1 < self.count:
            following = self._sum(frame + 1, computed, self._order)
            is_checksum = np.array_equal(following, stored[frame + 1])
        else:
            is_checksum = _bytes_differing(computed, stored[frame]) == 1
        if is_checksum:
            stored[frame] = computed
            return "its checksum was damaged"
        if frame == 0:
            words = self._head[:6].astype(">u4").view(self._order).astype(np.uint32)
            head = _combined((0, 0), words, _weights(6))
            if np.array_equal(self._sum(0, head, self._order), stored[0]):
                return "the checksum of the header was damaged"
        missing = stored[frame] - computed
        change = _one_byte(self._words(frame, self._order), missing, self._weights)
        if change is None:
            return None
        word, place, value = change
        at = word * 4 + (place if self._order == "<u4" else 3 - place)
        at += 0 if at < 8 else FRAME_HEAD_BYTES - 8
        self._frames[frame, at] = value
        return f"a damaged byte was restored, at {at} of the frame"

    def frames(self, found: LogPages) -> Iterator[tuple[int, bytes, int]]:
        """Yield the page number, the page, and the database's size where a transaction ends."""
        damaged = set(found.damaged)
        fields = self._fields[: self.count]
        sound = [frame for frame in range(self.count) if frame not in damaged]
        most = int(fields[sound, :2].max(initial=0)) + _PAGES_BEYOND
        for frame in range(self.count):
            number, total = fields[frame, :2].tolist()
            if not 0 < number <= most or total > most:
                continue  # only damaged ones
            yield number, self._frames[frame, FRAME_HEAD_BYTES:].tobytes(), total


# ---- the checksum -------------------------------------------------------------------------------


def _weights(words: int) -> UInt32Array:
    """Return by how much each word counts in both sums, and the sums before: (words + 2, 2).

    Each pair of words x, y turns the sums (a, b) into a + b + x and b + (a + b + x) + y.
    """
    weights = np.empty((words + 2, 2), dtype=np.uint32)
    # What (1, 0) and (0, 1) become by the pairs that follow, from the last pair backwards.
    first, second = (1, 0), (0, 1)
    for pair in range(words // 2 - 1, -1, -1):
        weights[2 * pair] = ((first[0] + second[0]) % 2**32, (first[1] + second[1]) % 2**32)
        weights[2 * pair + 1] = second
        first, second = (
            ((first[0] + second[0]) % 2**32, (first[1] + second[1]) % 2**32),
            ((first[0] + 2 * second[0]) % 2**32, (first[1] + 2 * second[1]) % 2**32),
        )
    weights[words], weights[words + 1] = first, second
    return weights


def _combined(
    before: tuple[int, int] | list[int], words: UInt32Array, weights: UInt32Array
) -> UInt32Array:
    """Return the two sums of SQLite's checksum over words, continuing `before`."""
    every = np.append(words, np.array(before, dtype=np.uint32))
    sums: UInt32Array = (every[:, np.newaxis] * weights).sum(axis=0, dtype=np.uint32)
    return sums


def _one_byte(
    words: UInt32Array, missing: UInt32Array, weights: UInt32Array
) -> tuple[int, int, int] | None:
    """Return the word, the place in it and the value of the byte that explains what is missing.

    A single bit is likelier than a byte. None if several bytes explain it, as they may for the
    highest byte of a word: the sums are modulo 2**32.
    """
    bits = 2 ** np.arange(8)
    every = np.arange(1, 256)
    for values in (np.concatenate([bits, -bits]), np.concatenate([every, -every])):
        found = []
        for place in range(4):
            deltas = (values << (8 * place)).astype(np.uint32)
            fits = weights[: len(words), :1] * deltas == missing[0]
            fits &= weights[: len(words), 1:] * deltas == missing[1]
            for word, which in np.argwhere(fits).tolist():
                old = int(words[word]) >> (8 * place) & 0xFF
                value = old + int(values[which])
                if 0 <= value <= 0xFF and (len(values) > 16 or (old ^ value).bit_count() == 1):
                    found.append((word, place, value))
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _bytes_differing(left: UInt32Array, right: UInt32Array) -> int:
    return int((left.view(np.uint8) != right.view(np.uint8)).sum())
