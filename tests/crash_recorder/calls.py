"""Make every call that the recorder knows, below a directory; for its test."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import sys
from pathlib import Path

SYS_OPENAT2, SYS_RENAMEAT2 = 437, {"x86_64": 316, "aarch64": 276}


def write_all_ways(root: Path) -> None:
    """Write to files by their descriptors and names, and by copies of the descriptors."""
    first = os.open(root / "first", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    copy = os.dup(first)
    os.close(first)
    os.write(copy, b"written")
    os.writev(copy, [b" in", b" parts"])
    os.pwrite(copy, b"at an offset", 600)
    os.pwritev(copy, [b"parts at ", b"an offset"], 1_300)
    os.ftruncate(copy, 2_000)
    os.truncate(root / "first", 1_900)
    os.posix_fallocate(copy, 0, 2_500)
    os.fdatasync(copy)
    appending = os.open(root / "first", os.O_WRONLY | os.O_APPEND)
    os.write(appending, b"at the end")
    os.dup2(copy, 200)
    os.pwrite(200, b"through a copy", 0)
    copied = os.open(root / "copied", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.copy_file_range(copy, copied, 100, 0, 50)
    os.copy_file_range(copy, copied, 100, 0)
    os.sendfile(copied, copy, 600, 80)
    os.fsync(copied)
    shared = os.open(root / "copied-shm", os.O_RDWR | os.O_CREAT)
    os.ftruncate(shared, mmap.PAGESIZE)
    mmap.mmap(shared, mmap.PAGESIZE)[:4] = b"seen"
    for descriptor in (copy, appending, 200, copied, shared):
        os.close(descriptor)
    (root / "first").open("r+b").close()
    (root / "emptied").write_bytes(b"contents")
    (root / "emptied").open("wb").close()


def change_entries(root: Path) -> None:
    """Create, link, rename and remove files and directories."""
    os.link(root / "first", root / "second")
    (root / "directory").mkdir()
    (root / "directory" / "inner").mkdir()
    (root / "second").rename(root / "directory" / "second")
    (root / "emptied").rename(root / "copied")
    (root / "link").symlink_to("first")
    with (root / "link").open("ab") as file:
        file.write(b"through a link")
    (root / "removed").write_bytes(b"")
    (root / "removed").unlink()
    (root / "tree" / "branch").mkdir(parents=True)
    (root / "tree" / "branch" / "leaf").write_bytes(b"leaf")
    shutil.rmtree(root / "tree")
    os.chdir(root / "directory")
    Path("relative").write_bytes(b"by a relative name")
    Path("relative").rename("../renamed")
    (root / "directory" / "inner").rename(root / "moved")
    (root / "directory" / "second").rename(root / "second")
    (root / "moved" / "file").write_bytes(b"in a directory that was moved")


def call_by_number(root: Path) -> None:
    """Make calls that had no function in the C library of the time."""
    library = ctypes.CDLL(None, use_errno=True)
    how = (ctypes.c_uint64 * 3)(os.O_WRONLY | os.O_CREAT, 0o644, 0)
    name = os.fsencode(root / "by-number")
    descriptor = library.syscall(SYS_OPENAT2, -100, name, how, ctypes.sizeof(how))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "openat2")
    os.write(descriptor, b"by number")
    os.close(descriptor)
    number = SYS_RENAMEAT2[os.uname().machine]
    renamed = os.fsencode(root / "by-another")
    if library.syscall(number, -100, name, -100, renamed, 0):
        raise OSError(ctypes.get_errno(), "renameat2")


def main(root: Path) -> None:
    """Do it all."""
    write_all_ways(root)
    change_entries(root)
    call_by_number(root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
