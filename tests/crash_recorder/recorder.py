"""Build the recorder, run a program under it, and read the operations that the program did.

The library of `recorder.c` is put before the C library, and sees its callers' system calls: those
of Python and those of SQLite. What a program does by other ways is noticed when the directory at
its end differs from the end of the recording, see `check_recording`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Final

from tests.crash_states import (
    AllSynced,
    Created,
    DirectorySynced,
    Image,
    Linked,
    Mapped,
    Marked,
    Operation,
    Removed,
    Renamed,
    Resized,
    Synced,
    SyncFailed,
    Written,
)

SOURCE: Final = Path(__file__).with_name("recorder.c")
BUILD: Final = Path(__file__).parents[2] / "build"
_HEAD: Final = struct.Struct("<IiqqqIIIIQ")

MAPPED_TO_BE_WRITTEN: Final = ("-shm",)
"""How the names of files end that may be written through memory: what is in them is derived."""

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # of fallocate
_EXCHANGE, _WHITEOUT = 2, 4  # of renameat2


class Kind(IntEnum):
    """The kinds of records, as in recorder.c."""

    OPEN = 1
    CLOSE = 2
    DUPLICATE = 3
    WRITE = 4
    TRUNCATE = 5
    SYNC = 6
    RENAME = 7
    REMOVE = 8
    MAKE_DIRECTORY = 9
    LINK = 10
    SYMLINK = 11
    MAP = 12
    MARK = 13
    ALLOCATE = 14
    SYNC_ALL = 15
    SYNC_RANGE = 16
    SYNC_FAILED = 17


# ---- the program that is recorded ---------------------------------------------------------------


def compiler() -> str | None:
    """Return the path of a C compiler, or None."""
    return shutil.which("gcc") or shutil.which("cc")


def library() -> Path:
    """Build the recorder, once for each version of its source, and return its path."""
    wanted = BUILD / f"recorder-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    if not wanted.exists():
        found = compiler()
        if found is None:
            raise FileNotFoundError("no C compiler: install gcc")
        BUILD.mkdir(exist_ok=True)
        built = wanted.with_suffix(f".{os.getpid()}")  # two test runs may build it at a time
        options = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([found, *options, "-o", built, SOURCE, "-ldl", "-lpthread"], check=True)
        built.rename(wanted)
    return wanted


def run_recorded(
    arguments: Sequence[str | Path],
    root: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run Python with `arguments`, recording into `log` what it does below `root`, which is empty.

    An earlier log is replaced. Raises CalledProcessError if the program fails.
    """
    log.unlink(missing_ok=True)
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        env={
            **os.environ,
            **(environment or {}),
            "LD_PRELOAD": str(library()),
            "CRASH_RECORDER_ROOT": str(root.resolve()),
            "CRASH_RECORDER_LOG": str(log),
        },
    )


class Recorder:
    """The recorder, as seen by the program that is recorded."""

    def __init__(self) -> None:
        program = ctypes.CDLL(None)
        if not hasattr(program, "crash_recorder_mark"):
            raise RuntimeError("this program does not run under the recorder")
        self._program = program

    def mark(self, event: str) -> None:
        """Record an event, such as an acknowledgement of what must be certain from here on."""
        contents = event.encode()
        self._program.crash_recorder_mark(contents, ctypes.c_uint64(len(contents)))

    def settle(self) -> None:
        """Let everything that was done so far be certain, without a sync."""
        self._program.crash_recorder_settle()

    def fail_sync(self, name: str) -> None:
        """Let the next sync of a file fail whose path contains `name`; of none if it is empty."""
        self._program.crash_recorder_fail_sync(name.encode())


# ---- what it did --------------------------------------------------------------------------------


def operations(log: Path, root: Path) -> list[Operation]:
    """Return what was recorded. Marks are texts."""
    reading = _Reading(str(root.resolve()))
    contents = log.read_bytes()
    place = 0
    while place < len(contents):
        head = _HEAD.unpack_from(contents, place)
        place += _HEAD.size
        ends = [place + head[6], place + head[6] + head[7], place + head[6] + head[7] + head[9]]
        path = os.fsdecode(contents[place : ends[0]])
        other = os.fsdecode(contents[ends[0] : ends[1]])
        reading.record(Kind(head[0]), head[1], head[2:5], path, other, contents[ends[1] : ends[2]])
        place = ends[2]
    return reading.operations


class _Reading:
    """Follows names and descriptors, as the calls that were recorded change them."""

    def __init__(self, root: str) -> None:
        self.operations: list[Operation] = []
        self._root = root
        self._entries: dict[int, dict[str, int]] = {0: {}}  # directory -> name -> node
        self._descriptors: dict[int, int] = {}
        self._sizes: dict[int, int] = {}  # of files
        self._names: dict[int, str] = {0: root}  # the last one
        self._next_node = 1

    def record(
        self,
        kind: Kind,
        descriptor: int,
        numbers: Sequence[int],
        path: str,
        other: str,
        contents: bytes,
    ) -> None:
        """Add the operations of one record."""
        match kind:
            case Kind.OPEN:
                self._open(descriptor, numbers[0], bool(numbers[1]), path)
            case Kind.CLOSE:
                self._descriptors.pop(descriptor, None)
            case Kind.DUPLICATE if numbers[1]:
                self._descriptors[numbers[0]] = self._descriptors[descriptor]
            case Kind.DUPLICATE:
                self._descriptors.pop(numbers[0], None)
            case Kind.WRITE:
                self._write(self._descriptors[descriptor], numbers[0], contents)
            case Kind.TRUNCATE:
                node = self._node(path) if path else self._descriptors[descriptor]
                self._resize(node, numbers[0])
            case Kind.ALLOCATE:
                self._allocate(self._descriptors[descriptor], *numbers)
            case Kind.MAP:
                self._map(self._descriptors[descriptor])
            case Kind.SYNC:
                node = self._descriptors[descriptor]
                is_directory = node in self._entries
                self.operations.append(DirectorySynced(node) if is_directory else Synced(node))
            case Kind.SYNC_FAILED:
                node = self._descriptors[descriptor]
                if node not in self._entries:
                    self.operations.append(SyncFailed(node))
            case Kind.SYNC_ALL:
                self.operations.append(AllSynced())
            case Kind.SYNC_RANGE:
                pass  # it flushes no cache of a disk and no length
            case Kind.MARK:
                self.operations.append(Marked(contents.decode()))
            case _:
                self._change_entries(kind, numbers[0], path, other)

    def _change_entries(self, kind: Kind, flags: int, path: str, other: str) -> None:
        match kind:
            case Kind.RENAME:
                self._rename(path, other, flags)
            case Kind.REMOVE:
                directory, name = self._place(path)
                del self._entries[directory][name]
                self.operations.append(Removed(directory, name))
            case Kind.MAKE_DIRECTORY:
                self._create(path, is_directory=True)
            case Kind.SYMLINK:
                self._create(path, target=other)
            case Kind.LINK:
                node, (directory, name) = self._node(path), self._place(other)
                self._entries[directory][name] = node
                self.operations.append(Linked(directory, name, node))

    def _open(self, descriptor: int, flags: int, created: bool, path: str) -> None:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise ValueError(f"{path}: a file without a name is not among what can be rebuilt")
        node = self._create(path) if created else self._node(path)
        self._descriptors[descriptor] = node
        if flags & os.O_TRUNC and self._sizes.get(node):
            self._resize(node, 0)

    def _create(self, path: str, *, is_directory: bool = False, target: str | None = None) -> int:
        node, (directory, name) = self._next_node, self._place(path)
        self._next_node += 1
        self._entries[directory][name] = node
        self._names[node] = path
        if is_directory:
            self._entries[node] = {}
        elif target is None:
            self._sizes[node] = 0
        self.operations.append(Created(directory, name, node, is_directory, target))
        return node

    def _rename(self, path: str, other: str, flags: int) -> None:
        if flags & (_EXCHANGE | _WHITEOUT):
            raise ValueError(f"{path}: an exchange of names is not among what can be rebuilt")
        (directory, source), (into, name) = self._place(path), self._place(other)
        node = self._entries[directory][source]
        if self._entries[into].get(name) == node:
            return  # two names of one file: rename(2) does nothing
        del self._entries[directory][source]
        self._entries[into][name] = node
        self._names[node] = other
        elsewhere = None if into == directory else into
        self.operations.append(Renamed(directory, source, name, node, elsewhere))

    def _write(self, node: int, offset: int, contents: bytes) -> None:
        self.operations.append(Written(node, offset, contents))
        self._sizes[node] = max(self._sizes[node], offset + len(contents))

    def _resize(self, node: int, size: int) -> None:
        self.operations.append(Resized(node, size))
        self._sizes[node] = size

    def _allocate(self, node: int, offset: int, length: int, how: int) -> None:
        if how & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
            raise ValueError(f"fallocate with mode {how:#x} is not among what can be rebuilt")
        end = offset + length
        if how & (_PUNCH_HOLE | _ZERO_RANGE):
            kept = min(end, self._sizes[node]) if how & _KEEP_SIZE else end
            self._write(node, offset, bytes(max(0, kept - offset)))
        elif not how & _KEEP_SIZE and end > self._sizes[node]:
            self._resize(node, end)

    def _map(self, node: int) -> None:
        if not self._names[node].endswith(MAPPED_TO_BE_WRITTEN):
            raise ValueError(f"{self._names[node]} is written through memory, unseen")
        self.operations.append(Mapped(node))

    def _node(self, path: str) -> int:
        if path == self._root:
            return 0
        directory, name = self._place(path)
        if name not in self._entries[directory]:
            raise ValueError(f"{path} was there before the recording")
        return self._entries[directory][name]

    def _place(self, path: str) -> tuple[int, str]:
        """Return the number of a path's directory, and its name there."""
        *parents, name = path[len(self._root) + 1 :].split("/")
        directory = 0
        for parent in parents:
            directory = self._entries[directory][parent]
        return directory, name


def check_recording(recorded: Sequence[Operation], root: Path, scratch: Path) -> None:
    """Raise AssertionError if `root` differs from the end of what was recorded there.

    Files that are written through memory may. `scratch` is an empty directory.
    """
    image = Image(recorded)
    image.apply(AllSynced())
    image.materialise(scratch, 0)
    found, expected = _tree(root), _tree(scratch)
    differing = sorted(found.keys() ^ expected.keys())
    assert not differing, f"{differing} are in one of the recording and the directory"
    for name, contents in expected.items():
        assert found[name] == contents, f"{name} differs from what was recorded"


def _tree(root: Path) -> dict[str, bytes | str | None]:
    """Return what is below a directory: contents, the target of a link, or None of a directory."""
    tree: dict[str, bytes | str | None] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            tree[name] = str(path.readlink())
        elif path.is_dir():
            tree[name] = None
        else:
            derived = name.endswith(MAPPED_TO_BE_WRITTEN)
            tree[name] = b"" if derived else path.read_bytes()
    return tree
