"""The seam to the disk: every write of the engine goes through `Disk`.

Tests replace it with a Disk that records, fails or delays. Rows, formats and file names must not
enter here. Failures are OSError and sqlite3.Error, as the system raises them.
"""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, TypeAlias

from vectorshard.shard.storage.open_stores import OpenStores

Bytes: TypeAlias = bytes | bytearray | memoryview

DiskError: TypeAlias = OSError | sqlite3.Error
DISK_ERRORS: Final = (OSError, sqlite3.Error)
"""What a method of Disk raises when the disk fails, for `except`."""


_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_RWF_DONTCACHE: Final = 0x80  # of preadv2(2), from Linux 6.14 on
_UNKNOWN_FLAG: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class _Uncached:
    """Whether the system knows the flag of reads that leave the page cache as it is."""

    allowed = hasattr(os, "preadv")


_uncached = _Uncached()


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, or a quota, is full: it may succeed later."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    # A WAL database has an index of its log in a file -shm, of 32 kB: without room for it, SQLite
    # opens nothing, not even to read.
    code = getattr(error, "sqlite_errorcode", None)
    return code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}


def is_locked(error: BaseException) -> bool:
    """Whether a transaction was not begun because another program has locked the database."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_on_read_only_disk(error: BaseException) -> bool:
    """Whether a write failed because the file system is mounted read-only."""
    if isinstance(error, OSError):
        return error.errno == errno.EROFS
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY


def is_exhausted(error: BaseException) -> bool:
    """Whether the process, or the machine, had no open files or memory left.

    What failed had no effect, and may succeed later: the disk is sound. SQLite reports every file
    that it cannot open alike, and Python its lack of memory as MemoryError.
    """
    if isinstance(error, OSError):
        return error.errno in _EXHAUSTED
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, MemoryError)
    return code & 0xFF in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM} or (
        code == sqlite3.SQLITE_IOERR_NOMEM
    )


def type_of_mount(mounts: str, path: Path) -> str:
    """Return the type of the file system at a path, by the text of /proc/self/mountinfo (proc(5)).

    The mount nearest to the path counts, and of several on one directory the last.
    """
    nearest, found = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mount = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4]))
        if len(mount.parts) >= nearest and path.is_relative_to(mount):
            nearest, found = len(mount.parts), after.split()[0]
    return found


class DiskFile:
    """An open file: its `path` when it was opened, and its `descriptor`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self.descriptor).st_size

    def close(self) -> None:
        """Close the descriptor. Syncs nothing."""
        os.close(self.descriptor)


class Disk:
    """The real disk. Each method documents when its effect is durable; any may raise OSError."""

    open_stores: OpenStores = OpenStores()
    """Which databases have their files open: of the process, unless a disk is given another."""

    open_row_files: OpenStores = OpenStores()
    """The same of row files."""

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """Return the bytes that this user may still write, and the size of the file system."""
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def is_read_only(self, path: Path) -> bool:
        """Whether the file system that holds a path is mounted read-only."""
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)

    def file_system(self, path: Path) -> str:
        """Return the type of the file system that holds a path, such as ext4 or nfs4.

        Empty if the system does not tell, as on any but Linux.
        """
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return ""
        return type_of_mount(mounts, path.resolve())

    def make_directory(self, path: Path) -> None:
        """Create a directory whose parent exists. Durable after `sync_directory(path.parent)`."""
        path.mkdir()

    def open(self, path: Path) -> DiskFile:
        """Open a file to read and write, creating it if it is absent.

        The creation is durable after `sync_directory(path.parent)`.
        """
        return DiskFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def open_to_read(self, path: Path, *, past_cache: bool = False) -> DiskFile:
        """Open a file that exists, to read it with `read`.

        `past_cache`: the disk is read, and not the page cache (O_DIRECT of open(2)). OSError with
        EINVAL where the file system does not allow that.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC
        if past_cache:
            flags |= _DIRECT
            if not _DIRECT:
                raise OSError(errno.EINVAL, "O_DIRECT is missing on this system", str(path))
        return DiskFile(path, os.open(path, flags))

    def read(self, file: DiskFile, offset: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes at `offset`; return how many there were.

        What the page cache lacks does not stay in it, where the system allows that. A file that was
        opened past the cache needs a buffer, an offset and a length of whole pages.
        """
        if _uncached.allowed:
            try:
                return os.preadv(file.descriptor, [buffer], offset, _RWF_DONTCACHE)
            except OSError as error:
                if error.errno not in _UNKNOWN_FLAG:
                    raise
            _uncached.allowed = False
        return os.preadv(file.descriptor, [buffer], offset)

    def forget_cached(self, path: Path) -> bool:
        """Drop the clean pages of an open file from the page cache; return whether that was asked.

        It uses a descriptor that the process has open already: opening and closing a database would
        take away the locks of SQLite's connections (sqlite.org/howtocorrupt.html, 2.2).
        """
        try:
            for entry in Path("/proc/self/fd").iterdir():
                try:
                    if entry.readlink() != path.absolute():
                        continue
                    # Another thread may close the descriptor now. Then this drops the pages of the
                    # file that took its number, which costs a read of it and nothing else.
                    os.posix_fadvise(int(entry.name), 0, 0, os.POSIX_FADV_DONTNEED)
                except OSError:  # it was closed
                    continue
                return True
        except (OSError, AttributeError):  # not on this system
            pass
        return False

    def write(self, file: DiskFile, offset: int, contents: Bytes) -> None:
        """Write all of `contents` at `offset` bytes. Durable after `sync(file)`."""
        rest = memoryview(contents).cast("B")
        while rest:  # pwrite may stop short, and does so at 2 GiB
            written = os.pwrite(file.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def extend(self, file: DiskFile, size: int) -> None:
        """Lengthen a file to `size` bytes, with zeros. Durable after `sync(file)`.

        ValueError if it would shorten the file: reading a memory map past the end is a SIGBUS.
        """
        if size < file.size:
            raise ValueError(f"size {size} is below the {file.size} bytes of {file.path}")
        os.ftruncate(file.descriptor, size)

    def sync(self, file: DiskFile) -> None:
        """Make the file's contents and length durable.

        fdatasync suffices: it flushes a changed length too, and omits only times (fdatasync(2)).
        """
        os.fdatasync(file.descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable: what was created, renamed and removed in it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, destination: Path) -> None:
        """Rename within one directory, replacing a file. Durable after `sync_directory`.

        ValueError if the directories differ: both would have to be synced.
        """
        if source.parent != destination.parent:
            raise ValueError(f"{source} and {destination} are not in one directory")
        source.rename(destination)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable after `sync_directory(path.parent)`."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Durable after `sync_directory(path.parent)`."""
        path.rmdir()

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and its contents. It may stop half-way; repeat it then."""
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.remove(entry)
        self.remove_directory(path)

    def write_new_file(self, path: Path, contents: Bytes) -> None:
        """Write a whole file atomically and durably, through a temporary file `<name>.new`."""
        temporary = path.with_name(path.name + ".new")
        if temporary.exists():  # left by a crash; it may be longer than the new contents
            self.remove(temporary)
        try:
            with closing(self.open(temporary)) as file:
                self.write(file, 0, contents)
                self.sync(file)
            self.rename(temporary, path)
        except OSError:
            with suppress(OSError):  # a full disk stays full otherwise
                self.remove(temporary)
            raise
        self.sync_directory(path.parent)

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open the connection that writes a SQLite database, creating the file if it is absent.

        Only this connection checkpoints, and only in `checkpoint` and `disconnect`: SQLite ignores
        failures of automatic checkpoints, so it would forget a failed fsync of the database and
        reset the log over rows that never reached the disk.
        Transactions begin with an explicit BEGIN. Any thread may use it, one at a time.
        """
        try:
            return _connected(path)
        except sqlite3.OperationalError as error:
            if not _has_no_room_for_an_index(error):
                raise
            return _connected(path, IN_MEMORY)

    def connect_reader(self, path: Path) -> sqlite3.Connection:
        """Open a connection that cannot write, and that never checkpoints.

        Its first and its last use may create and leave files of SQLite's beside the database.
        """
        try:
            return _connected_reader(path)
        except sqlite3.OperationalError as error:
            if not _has_no_room_for_an_index(error):
                raise
        # Only a connection that may write makes the index in memory. Closed while a reader is
        # open, it leaves the log as it is.
        maker = _opened(path, f"{IN_MEMORY}&mode=rw")
        try:
            maker.execute("PRAGMA wal_autocheckpoint = 0")
            maker.execute("PRAGMA user_version").fetchall()
            return _connected_reader(path, IN_MEMORY)
        finally:
            maker.close()

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit the open transaction. It is durable when this returns."""
        connection.execute("COMMIT")

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        """Sync the log of a database, and copy it into the database as far as readers allow."""
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def disconnect(self, connection: sqlite3.Connection) -> None:
        """Close the connection that writes. The last connection checkpoints and removes the log."""
        connection.close()


# ---- connections --------------------------------------------------------------------------------

IN_MEMORY: Final = "vfs=unix-excl"
"""Makes SQLite keep the index of its log in memory instead of in a file -shm of 32 kB, for which a
full disk has no room. No other process can open the database meanwhile."""


def _has_no_room_for_an_index(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_IOERR_SHMSIZE


def _opened(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _connected(path: Path, options: str = "") -> sqlite3.Connection:
    connection = _opened(path, options)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"{path} is in journal mode {mode}, not WAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _connected_reader(path: Path, options: str = "") -> sqlite3.Connection:
    reader = _opened(path, f"{options}&mode=ro" if options else "mode=ro")
    try:
        reader.execute("PRAGMA query_only = ON")
        reader.execute("PRAGMA wal_autocheckpoint = 0")
        reader.execute("PRAGMA user_version").fetchall()  # it opens the log and its index
    except BaseException:
        reader.close()
        raise
    return reader
