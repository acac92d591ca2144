"""One harm of one file: a flipped bit, a cut, a loss, an exchange, a return to yesterday."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np


class Kind(Enum):
    """What is done to the file."""

    FLIP = "flip"
    CUT = "cut"
    EMPTIED = "emptied"
    REMOVED = "removed"
    EXCHANGED = "exchanged"  # for the same file of the other shard, or the other collection
    YESTERDAY = "yesterday"


FLIPS: Final = 0.75
"""The share of harms that flip one bit."""

FIRST_BYTES: Final = 6_000
"""Half of the flips are among the first bytes: most of a row file is room to grow."""


@dataclass(frozen=True, slots=True)
class Harm:
    """A harm of `file`, relative to the directory of both shards.

    `place` is the byte whose `bit` flips, or the length that is left. `other` is the file that
    takes its place.
    """

    file: str
    kind: Kind
    place: int = 0
    bit: int = 0
    other: str = ""

    def __str__(self) -> str:
        where = {
            Kind.FLIP: f" bit {self.bit} of byte {self.place:,}",
            Kind.CUT: f" to {self.place:,} bytes",
            Kind.EXCHANGED: f" for {self.other}",
        }
        return f"{self.file}: {self.kind.value}{where.get(self.kind, '')}"

    def do(self, directory: Path, yesterday: Path) -> None:
        """Harm a copy."""
        path = directory / self.file
        if self.kind is Kind.FLIP:
            content = bytearray(path.read_bytes())
            content[self.place] ^= 1 << self.bit
            path.write_bytes(content)
        elif self.kind in (Kind.CUT, Kind.EMPTIED):
            with path.open("r+b") as file:
                file.truncate(self.place)
        elif self.kind is Kind.REMOVED:
            path.unlink()
        elif self.kind is Kind.EXCHANGED:
            other = directory / self.other
            aside = path.with_name("aside")
            path.rename(aside)
            other.rename(path)
            aside.rename(other)
        else:
            shutil.copyfile(yesterday / self.file, path)


def class_of(file: str) -> str:
    """Return what kind of file it is: its name without numbers."""
    name = file.rpartition("/")[2]
    return name.split("-")[0] if name[:5] in ("rows-", "index", "filte") else name


def classes_of(directory: Path) -> Mapping[str, Sequence[str]]:
    """Return the files of both shards by their kind."""
    found: dict[str, list[str]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            file = str(path.relative_to(directory))
            found.setdefault(class_of(file), []).append(file)
    return found


def drawn(rng: np.random.Generator, directory: Path, yesterday: Path) -> Harm:
    """Draw a harm: each kind of file is as likely as every other."""
    classes = classes_of(directory)
    files = classes[sorted(classes)[int(rng.integers(len(classes)))]]
    file = files[int(rng.integers(len(files)))]
    length = (directory / file).stat().st_size
    kind = Kind.FLIP if rng.random() < FLIPS else list(Kind)[1 + int(rng.integers(len(Kind) - 1))]
    if kind is Kind.EXCHANGED:
        others = [other for other in files if other != file]
        if others:
            return Harm(file, kind, other=others[int(rng.integers(len(others)))])
        kind = Kind.REMOVED
    if kind is Kind.YESTERDAY:
        return Harm(file, kind if (yesterday / file).exists() else Kind.REMOVED)
    if not length and kind is not Kind.REMOVED:
        return Harm(file, Kind.REMOVED)
    if kind is Kind.FLIP:
        among = min(length, FIRST_BYTES) if rng.random() < 0.5 else length
        return Harm(file, kind, int(rng.integers(among)), int(rng.integers(8)))
    return Harm(file, kind, int(rng.integers(length)) if kind is Kind.CUT else 0)
