"""Targets: where backups lie, as objects by name. A directory, or a prefix of an object store.

Names are paths with slashes. An object appears as a whole or not at all, and is never changed. All
methods block. Rows and manifests must not enter here.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from vectorshard.backup.failures import ObjectExists, ObjectNotFound, TargetError
from vectorshard.shard.storage.data_directory import IDENTITY_FILE
from vectorshard.shard.storage.disk import Disk

UNFINISHED: Final = ".new"
"""Ends the name of a file that is being written: no object, and garbage if it is old."""

PIECE_BYTES: Final = 1024 * 1024
"""Bytes of a file between two syncs. A larger piece makes the commits of a server on the same disk
wait longer: ext4 writes it before their own few pages."""

_ADDRESS: Final = re.compile(r"s3:|[A-Za-z][A-Za-z0-9+.-]*:/")
"""What begins so was meant as an address in a network."""

_NO_LINKS: Final = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object: its name, its size, and when it was written in seconds since 1970.

    The time is that of the machine that stores the object.
    """

    name: str
    size_bytes: int
    written_at: float


class Target(Protocol):
    """Objects by name. The methods raise TargetError if the target fails."""

    @property
    def where(self) -> str:
        """The target, as an operator writes it."""
        ...

    def put(self, name: str, contents: bytes, *, if_absent: bool = False) -> None:
        """Store an object, durably; with `if_absent`, ObjectExists if there is one."""
        ...

    def get(self, name: str) -> bytes:
        """Return an object; ObjectNotFound if it is absent."""
        ...

    def get_range(self, name: str, first: int, size_bytes: int) -> bytes:
        """Return a part of an object; ObjectNotFound if it is absent."""
        ...

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose names begin with `prefix`, a folder with its slash, by name.

        Files that were never finished are among them; they end in UNFINISHED.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete an object; one that is absent changes nothing."""
        ...


def open_target(where: str, *, create: bool = False) -> Target:
    """Return the target at DIR or s3://BUCKET/PREFIX.

    Raises TargetError if the directory does not exist, unless it is to be created.
    """
    if where.startswith("s3://"):
        from vectorshard.backup.s3_target import S3Target

        return S3Target(where)
    if _ADDRESS.match(where):
        raise TargetError(
            f"{where}: a target is a directory, or s3://BUCKET/PREFIX; write ./{where} for a "
            "directory of this name"
        )
    return DirectoryTarget(Path(where), create=create)


class DirectoryTarget:
    """A directory. What is written is synced piece by piece, with rests in between.

    Parameters
    ----------
    path
        The directory; `create` makes it.
    disk
        Writes the files.
    paced
        Whether to rest after each piece as long as it took, so that a server that commits on the
        same disk waits for half the time at most.
    sleep, clock
        Wait some seconds; seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        disk: Disk | None = None,
        paced: bool = True,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._disk = disk or Disk()
        self._paced = paced
        self._sleep = sleep
        self._clock = clock
        try:
            if create:
                _refuse_data_directory(path.resolve())
                self._make_directory(path.absolute())
            if not path.is_dir():
                reason = "it is not a directory" if path.exists() else "there is no such directory"
                raise TargetError(f"{path}: {reason}")
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror or error}") from error

    @property
    def where(self) -> str:
        """The path of the directory."""
        return str(self._path)

    def put(self, name: str, contents: bytes, *, if_absent: bool = False) -> None:
        """Store an object, durably; with `if_absent`, ObjectExists if there is one."""
        path = self._path / name
        unfinished = path.with_name(path.name + UNFINISHED)
        try:
            self._make_directory(path.parent)
            if if_absent and not contents:
                _create_empty(path)
            else:
                self._write_and_publish(unfinished, contents, path, if_absent=if_absent)
            self._disk.sync_directory(path.parent)
        except OSError as error:
            with suppress(OSError):
                self._disk.remove(unfinished)
            raise TargetError(f"{path}: {error.strerror or error}") from error

    def _write_and_publish(
        self, unfinished: Path, contents: bytes, path: Path, *, if_absent: bool
    ) -> None:
        with suppress(FileNotFoundError):  # left by a crash; it may be longer
            self._disk.remove(unfinished)
        self._write(unfinished, contents)
        if if_absent:
            self._publish_if_absent(unfinished, path)
        else:
            self._disk.rename(unfinished, path)

    def _write(self, path: Path, contents: bytes) -> None:
        view = memoryview(contents)
        with closing(self._disk.open(path)) as file:
            for first in range(0, max(1, len(view)), PIECE_BYTES):
                begun = self._clock()
                self._disk.write(file, first, view[first : first + PIECE_BYTES])
                self._disk.sync(file)
                if self._paced:
                    self._sleep(self._clock() - begun)

    def _publish_if_absent(self, unfinished: Path, path: Path) -> None:
        try:
            os.link(unfinished, path)
        except FileExistsError:
            self._disk.remove(unfinished)
            raise ObjectExists(f"{path} exists already") from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without links. The empty file is damaged if this process dies now.
            try:
                _create_empty(path)
            except ObjectExists:
                self._disk.remove(unfinished)
                raise
            self._disk.rename(unfinished, path)
        else:
            self._disk.remove(unfinished)

    def _make_directory(self, path: Path) -> None:
        if path.is_dir():
            return
        self._make_directory(path.parent)
        with suppress(FileExistsError):  # another backup made it
            self._disk.make_directory(path)
        self._disk.sync_directory(path.parent)

    def get(self, name: str) -> bytes:
        """Return an object; ObjectNotFound if it is absent."""
        try:
            return (self._path / name).read_bytes()
        except OSError as error:
            raise self._error_of(name, error) from error

    def get_range(self, name: str, first: int, size_bytes: int) -> bytes:
        """Return a part of an object; ObjectNotFound if it is absent."""
        try:
            with (self._path / name).open("rb") as file:
                file.seek(first)
                return file.read(size_bytes)
        except OSError as error:
            raise self._error_of(name, error) from error

    def _error_of(self, name: str, error: OSError) -> TargetError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return ObjectNotFound(f"{self._path / name} does not exist")
        return TargetError(f"{self._path / name}: {error.strerror or error}")

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the files below a folder, by name."""
        found_in = self._path / prefix
        paths: list[Path] = []

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # it was never there, or is deleted
                raise TargetError(f"{error.filename}: {error.strerror or error}") from error

        for folder, _, names in os.walk(found_in, onerror=refuse):
            paths += [Path(folder, name) for name in names]
        for path in sorted(paths):
            try:
                found = path.stat()
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as error:
                raise TargetError(f"{path}: {error.strerror or error}") from error
            yield StoredObject(
                name=path.relative_to(self._path).as_posix(),
                size_bytes=found.st_size,
                written_at=found.st_mtime,
            )

    def delete(self, name: str) -> None:
        """Delete a file, and the folders that it leaves empty."""
        path = self._path / name
        try:
            self._disk.remove(path)
            self._disk.sync_directory(path.parent)
            while path.parent.parent != self._path and path.parent != self._path:
                path = path.parent
                self._disk.remove_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise self._error_of(name, error) from error


def _refuse_data_directory(path: Path) -> None:
    """Raise TargetError if a directory is one of rows, or lies in one, or holds those of shards."""
    inside = [each for each in (path, *path.parents) if (each / IDENTITY_FILE).exists()]
    if found := inside + sorted(each.parent for each in path.glob(f"shard-*/{IDENTITY_FILE}")):
        raise TargetError(
            f"{path}: {found[0]} is the data directory of a shard: backups belong elsewhere, best "
            "on another disk"
        )


def _create_empty(path: Path) -> None:
    """Create an empty file, which several processes may try at once; ObjectExists if it exists."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    except FileExistsError:
        raise ObjectExists(f"{path} exists already") from None
