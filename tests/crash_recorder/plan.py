"""What happens in a history, and what must be there afterwards.

A `Step` is one call. Steps of one round are asked for concurrently, and concern different rows or
collections, so that each of them alone is done or not. `Expected` follows the marks of a history:
each step is begun, and then done; after a power cut what was begun is found `done` or `undone`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any, Final, Literal, TypeAlias

from tests.crash_recorder.membership import Seen
from tests.shard.engine.contents import DIM, Contents, Id, Write, Writes
from vectorshard.shard.types import (
    CollectionConfig,
    IdType,
    IndexConfig,
    Metric,
    Rows,
    Token,
    WriteMode,
)

NAMES: Final = ("words", "twins", "birds")
NUMBERS: Final = 150  # of which ids are made
SIZES: Final = (1, 2, 10, 30, 80)

StepKind: TypeAlias = Literal[
    "create",
    "staged",  # a creation as routers ask for it
    "drop",
    "update",
    "upsert",
    "insert",
    "delete",
    "train",
    "restart",
    "exchange",
]
CREATIONS: Final = ("create", "staged")
WITHOUT_EFFECT: Final = ("train", "restart", "exchange")


@dataclass(frozen=True, slots=True)
class Step:
    """One call: to which collection, with which numbers, and the seed of what else it needs."""

    number: int
    kind: StepKind
    collection: str = ""
    numbers: tuple[int, ...] = ()
    seed: int = 0

    def config(self) -> CollectionConfig:
        """Return the configuration of a collection that is to be created."""
        random = Random(self.seed)
        return CollectionConfig(
            name=self.collection,
            dim=DIM,
            metric=random.choice([Metric.L2, Metric.COSINE]),
            id_type=random.choice([IdType.INT64, IdType.STRING]),
            index=IndexConfig(min_training_size=random.choice([10, 60, 10_000])),
        )

    def target_recall(self) -> float:
        """Return the target of an update."""
        return Random(self.seed).choice([0.8, 0.85, 0.97])

    def write(self, id_type: IdType) -> Write:
        """Return the request of a write."""
        writes = Writes(id_type, self.seed)
        if self.kind == "delete":
            return replace(writes.delete(self.numbers), collection=self.collection)
        mode = WriteMode.INSERT if self.kind == "insert" else WriteMode.UPSERT
        return replace(writes.upsert(self.numbers, mode), collection=self.collection)


@dataclass(frozen=True, slots=True)
class Kept:
    """A collection that must be there: its contents, and the newest token of its writes."""

    config: CollectionConfig
    contents: Contents
    incarnation: str | None = None  # of a creation that was not answered: any
    token: Token | None = None

    def after(self, write: Write) -> Kept:
        """Return the collection once a write is done."""
        return replace(self, contents=self.contents.after(write))


@dataclass(frozen=True, slots=True)
class Found:
    """A collection as it was read."""

    config: CollectionConfig
    incarnation: str
    rows: Mapping[Id, tuple[bytes, bytes]]

    @classmethod
    def of(cls, config: CollectionConfig, incarnation: str, rows: Rows) -> Found:
        """Take the rows of a List that asked for everything."""
        assert rows.vectors is not None
        assert rows.metadata is not None
        parts = zip(rows.ids.tolist(), rows.vectors, rows.metadata, strict=True)
        by_id = {id_: (vector.tobytes(), metadata) for id_, vector, metadata in parts}
        assert len(by_id) == len(rows.ids), "an id has two rows"
        return cls(config, incarnation, by_id)


@dataclass(slots=True)
class Expected:
    """What must be there, and what was begun and may be there."""

    collections: dict[str, Kept] = field(default_factory=dict)
    begun: dict[int, Step] = field(default_factory=dict)
    next_number: int = 0
    seen: Seen | None = None
    dropped: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    """Of those dropped, which the shard was told to forget: it may do so from then on."""
    noted: list[str] = field(default_factory=list)
    """Marks of other kinds."""

    def copy(self) -> Expected:
        """Return a copy, which follows other marks."""
        return replace(
            self,
            collections=dict(self.collections),
            begun=dict(self.begun),
            dropped=set(self.dropped),
            forgotten=set(self.forgotten),
            noted=list(self.noted),
        )

    def follow_all(self, marks: Iterable[str]) -> None:
        """Take note of marks in their order."""
        for mark in marks:
            self.follow(mark)

    def follow(self, mark: str) -> None:
        """Take note of a mark, as `begun` and `done` make it."""
        match json.loads(mark):
            case {"begun": step}:
                numbers = tuple(step.pop("numbers"))
                self.begun[step["number"]] = Step(**step, numbers=numbers)
                self.next_number = max(self.next_number, step["number"] + 1)
            case {"done": number, "incarnation": incarnation, "token": token}:
                self._finish(self.begun.pop(number), incarnation, _token_of(incarnation, token))
            case {"undone": number}:
                del self.begun[number]
            case {"seen": seen}:
                self.seen = Seen.of(seen)
            case {"forget": incarnations}:
                self.forgotten.update(incarnations)
            case _:
                self.noted.append(mark)

    def _finish(self, step: Step, incarnation: str | None, token: Token | None) -> None:
        kept = self.collections.get(step.collection)
        if step.kind in CREATIONS:
            config = step.config()
            self.collections[step.collection] = Kept(config, Contents(config.metric), incarnation)
        elif kept is not None and step.kind == "drop":
            del self.collections[step.collection]
            if kept.incarnation is not None:
                self.dropped.add(kept.incarnation)
        elif kept is not None and step.kind == "update":
            config = replace(kept.config, target_recall=step.target_recall())
            self.collections[step.collection] = replace(kept, config=config)
        elif kept is not None and step.kind in ("upsert", "insert", "delete"):
            kept = kept.after(step.write(kept.config.id_type))
            newest = max(
                [each for each in (kept.token, token) if each], key=_sequence, default=None
            )
            self.collections[step.collection] = replace(kept, token=newest)

    @property
    def may_be_dropped(self) -> set[str]:
        """The incarnations of which a drop was begun."""
        drops = [step.collection for step in self.begun.values() if step.kind == "drop"]
        return self.dropped | {self.collections[name].incarnation or "" for name in drops}

    def settle(self, found: Mapping[str, Found]) -> list[str]:
        """Decide what became of the steps that were begun; return the marks that say so.

        AssertionError if one of them was done in part.
        """
        marks = []
        for step in list(self.begun.values()):
            there = found.get(step.collection)
            if self._is_done(step, there):
                incarnation = there.incarnation if there and step.kind in CREATIONS else None
                marks.append(done(step, incarnation, None))
            else:
                marks.append(json.dumps({"undone": step.number}))
            self.follow(marks[-1])
        return marks

    def _is_done(self, step: Step, found: Found | None) -> bool:
        kept = self.collections.get(step.collection)
        if step.kind in CREATIONS:
            return found is not None
        if step.kind == "drop":
            return found is None
        if kept is None or found is None or step.kind in WITHOUT_EFFECT:
            return False
        if step.kind == "update":
            return found.config.target_recall == step.target_recall()
        write = step.write(kept.config.id_type)
        assert write.ids is not None
        ids: list[Id] = write.ids.tolist()
        before = [kept.contents.rows.get(id_) for id_ in ids]
        after = [kept.contents.after(write).rows.get(id_) for id_ in ids]
        there = [found.rows.get(id_) for id_ in ids]
        assert there in (before, after), f"{step} was done in part"
        return there == after

    def check(self, found: Mapping[str, Found]) -> None:
        """Compare what was found with what must be there, once all steps are settled."""
        assert not self.begun
        assert sorted(found) == sorted(self.collections)
        for name, kept in self.collections.items():
            assert kept.incarnation in (None, found[name].incarnation)
            assert kept.config == found[name].config
            _check_rows(name, kept.contents.rows, found[name].rows)


def _check_rows(
    name: str, expected: Mapping[Id, tuple[bytes, bytes]], found: Mapping[Id, tuple[bytes, bytes]]
) -> None:
    if expected != found:
        missing = [id_ for id_ in expected if id_ not in found]
        extra = [id_ for id_ in found if id_ not in expected]
        other = [id_ for id_ in expected if id_ in found and found[id_] != expected[id_]]
        raise AssertionError(f"{name}: missing {missing}, extra {extra}, with others' {other}")


def _sequence(token: Token) -> int:
    return max(token.sequences.values())


def _token_of(incarnation: str | None, token: Any) -> Token | None:
    if token is None:
        return None
    parts = [{int(shard): number for shard, number in part.items()} for part in token[1:]]
    return Token(incarnation=token[0], sequences=parts[0], sessions=parts[1])


# ---- marks --------------------------------------------------------------------------------------


def begun(step: Step) -> str:
    """Return the mark of a step that is asked for."""
    return json.dumps({"begun": asdict(step)})


def seen(what: Seen) -> str:
    """Return the mark of what others see of the shard from now on."""
    return json.dumps({"seen": asdict(what)})


def done(step: Step, incarnation: str | None, token: Token | None) -> str:
    """Return the mark of a step that is acknowledged, with its collection or its token."""
    parts = None
    if token is not None:
        parts = [token.incarnation, dict(token.sequences), dict(token.sessions)]
    return json.dumps({"done": step.number, "incarnation": incarnation, "token": parts})


# ---- what happens -------------------------------------------------------------------------------


def next_round(random: Random, expected: Expected) -> list[Step]:
    """Draw the steps that are asked for next, from what is there."""
    there = sorted(expected.collections)
    absent = [name for name in NAMES if name not in expected.collections]
    kinds: list[Any] = ["write"] * 14 + ["train", "exchange"] * 2 + ["restart", "update", "drop"]
    kind = random.choice(kinds)
    if not there or (absent and random.random() < 0.12):
        kind = random.choice(CREATIONS)
    number = expected.next_number
    seed = random.getrandbits(30)
    match kind:
        case "create" | "staged":
            return [Step(number, kind, random.choice(absent), seed=seed)]
        case "restart":
            return [Step(number, "restart")]
        case "drop":
            return [Step(number, "drop", random.choice(there))]
        case "update":
            return [Step(number, "update", random.choice(there), seed=seed)]
        case "train" | "exchange":
            return [
                Step(number, kind, random.choice(there)),
                *_writes(random, number + 1, there, 1),
            ]
    return _writes(random, number, there, random.choice([1, 1, 1, 2, 4]))


def _writes(random: Random, number: int, there: list[str], count: int) -> list[Step]:
    """Draw writes of which no two concern the same row of a collection."""
    free = {name: random.sample(range(NUMBERS), NUMBERS) for name in there}
    steps = []
    for place in range(count):
        name = random.choice(there)
        taken = [free[name].pop() for _ in range(min(random.choice(SIZES), len(free[name])))]
        kind: StepKind = random.choice(["upsert", "upsert", "upsert", "insert", "delete", "delete"])
        seed = random.getrandbits(30)
        steps.append(Step(number + place, kind, name, tuple(sorted(taken)), seed))
    return steps
