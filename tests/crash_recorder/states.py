"""The lives that were recorded, the crash states that are drawn of them, and their check."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TypeAlias

from tests.crash_recorder.check import check_state
from tests.crash_recorder.plan import Expected
from tests.crash_states import (
    Created,
    DirectorySynced,
    Image,
    Linked,
    Marked,
    Operation,
    Removed,
    Renamed,
    Resized,
    Synced,
    Written,
)

Check: TypeAlias = Callable[[Path, Expected, int], Counter[str]]
"""Checks a directory against what is expected, by the number of the state; see `check_state`."""


@dataclass(slots=True)
class Lived:
    """A life within a recording: its directory, its moments, and the marks that it began with."""

    directory: str
    node: int
    first: int
    end: int
    inherited: list[str] = field(default_factory=list)

    def marks(self, operations: Sequence[Operation], moment: int) -> list[str]:
        """Return the marks of this life and those before it until a moment."""
        own = operations[self.first : moment]
        return [*self.inherited, *(str(each.event) for each in own if isinstance(each, Marked))]


def lives(operations: Sequence[Operation]) -> list[Lived]:
    """Return the lives of a recording in their order.

    Each begins with a mark that names its directory below the root and, after a power cut, the
    moment of the life before at which the power failed. All but the last end where the next begins.
    """
    found: list[Lived] = []
    names: dict[str, int] = {}
    for moment, operation in enumerate(operations):
        if isinstance(operation, Created) and operation.directory == 0:
            names[operation.name] = operation.node
        if not isinstance(operation, Marked):
            continue
        match json.loads(str(operation.event)):
            case {"life": directory, "after": after}:
                inherited = [] if after is None else found[-1].marks(operations, after)
                life = Lived(directory, names[directory], moment + 1, len(operations), inherited)
                found.append(life)
            case {"end": _}:
                found[-1].end = moment
    return found


def kind_of(operation: Operation, names: dict[int, str]) -> str:
    """Return what kind of operation this is, and on what kind of file: rare kinds count as much."""
    match operation:
        case Created() | Linked() | Renamed() | Removed():
            name = operation.name
        case DirectorySynced(directory):
            name = names.get(directory, "")
        case Written() | Resized() | Synced():
            name = names.get(operation.node, "")
        case _:
            name = ""
    return f"{type(operation).__name__} {''.join(c for c in name if not c.isdigit())}"


def moments(operations: Sequence[Operation], life: Lived, random: Random, count: int) -> list[int]:
    """Draw moments, in ascending order: half of all alike, half by kinds of what comes next."""
    names: dict[int, str] = {}
    by_kind: dict[str, list[int]] = {}
    for moment in range(life.end):
        operation = operations[moment]
        if isinstance(operation, Created | Renamed | Linked):
            names[operation.node] = operation.name
        if moment >= life.first:
            by_kind.setdefault(kind_of(operation, names), []).append(moment)
    kinds = sorted(by_kind)
    drawn = [random.randint(life.first, life.end) for _ in range(count // 2)]
    turn = random.sample(kinds, len(kinds))
    of_kinds = islice(cycle(turn), count - len(drawn))
    return sorted(
        [*drawn, *(random.choice(by_kind[kind]) + random.choice([0, 1]) for kind in of_kinds)]
    )


@dataclass(frozen=True, slots=True)
class Violation:
    """A crash state that does not hold what it must."""

    directory: str
    moment: int
    seed: int
    error: BaseException

    def __str__(self) -> str:
        what = f"{type(self.error).__name__}: {self.error}"
        return f"{self.directory}, moment {self.moment}, seed {self.seed}: {what[:1_000]}"


def check_lives(
    operations: Sequence[Operation],
    lived: Sequence[Lived],
    scratch: Path,
    seed: int,
    states: int,
    warned: Counter[str] | None = None,
    check: Check = check_state,
) -> Iterator[Violation]:
    """Check so many states of some lives of one recording, spread over them; yield violations.

    The directory of a violation stays in `scratch`. `warned` counts what the shards warned of.
    """
    warned = Counter() if warned is None else warned
    random = Random(seed)
    shares = [states // len(lived) + (place < states % len(lived)) for place in range(len(lived))]
    image, done, number = Image(), 0, 0
    for life, share in zip(lived, shares, strict=True):
        expected = Expected()
        expected.follow_all(life.inherited)
        for moment in moments(operations, life, random, share):
            while done < moment:
                operation = operations[done]
                image.apply(operation)
                if isinstance(operation, Marked) and done >= life.first:
                    expected.follow(str(operation.event))
                done += 1
            directory = scratch / f"{life.directory}-{number}"
            directory.mkdir()
            seed = random.getrandbits(32)
            image.materialise(directory, seed, life.node)
            number += 1
            try:
                warned += check(directory, expected.copy(), number)
            except Exception as error:
                yield Violation(life.directory, moment, seed, error)
            else:
                shutil.rmtree(directory)
