"""A data directory that an earlier release wrote gives the answers that it gave then.

tests/fixtures/README.md says what is in the archives.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tarfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from vectorshard.cli.embedded import open_embedded
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import BufferConfig, EngineConfig
from vectorshard.shard.descriptions import ShardDescription
from vectorshard.shard.engine.maintenance import Maintenance
from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Or, Range
from vectorshard.shard.types import (
    CollectionConfig,
    CountRequest,
    Effort,
    FieldType,
    FilterField,
    GetRequest,
    IdArray,
    IdType,
    Include,
    IndexConfig,
    IndexKind,
    ListRequest,
    Metric,
    SearchRequest,
    UpsertRequest,
)

FIXTURES: Final = Path(__file__).parent / "fixtures"
ARCHIVES: Final = ("data_directory", "data_directory_0a911ab")
STATES: Final = ("closed", "killed")
SHARDS: Final = 2
QUIET: Final = EngineConfig(buffer=BufferConfig(absorb_rows=100_000), few_rows_work=0)
"""Opening changes nothing: what is buffered stays buffered. Few rows are searched by the index."""

WORDS: Final = CollectionConfig(
    name="words",
    dim=8,
    metric=Metric.COSINE,
    id_type=IdType.STRING,
    index=IndexConfig(kind=IndexKind.IVF_SQ8, min_training_size=100),
    target_recall=0.9,
    filter_fields=(
        FilterField("lang", FieldType.KEYWORD),
        FilterField("year", FieldType.INT64),
        FilterField("rating", FieldType.DOUBLE),
        FilterField("public", FieldType.BOOL),
    ),
)
POINTS: Final = CollectionConfig(name="points", dim=8, metric=Metric.L2, id_type=IdType.INT64)
CONFIGS: Final = {config.name: config for config in (WORDS, POINTS)}

FILTERS: Final[Mapping[str, Filter]] = {
    "en": Equals("lang", "en"),
    "two_languages": In("lang", ("de", "日本")),
    "recent": Range("year", gte=2000.0, lt=2010.0),
    "rated": Exists("rating"),
    "mixed": And(
        (Not(Equals("public", True)), Or((Equals("lang", "de"), Range("rating", gt=0.5))))
    ),
}
EFFORTS: Final = {
    "default": Effort(),
    "exact": Effort(exact=True),
    "one_list": Effort(nprobe=1),
}


class Answers:
    """What the release that wrote the archive answered of one collection."""

    def __init__(self, root: Path, name: str) -> None:
        self.json: Mapping[str, Any] = json.loads((root / "answers.json").read_text())[name]
        with np.load(root / "answers.npz") as arrays:
            self.queries: npt.NDArray[np.float32] = arrays["queries"]
            self.arrays: Mapping[str, npt.NDArray[Any]] = {
                key.removeprefix(f"{name}."): array for key, array in arrays.items()
            }


def unpack(archive: str, directory: Path) -> Path:
    with tarfile.open(FIXTURES / f"{archive}.tar.gz") as contents:
        contents.extractall(directory, filter="data")
    return directory


@pytest.fixture(scope="module", params=ARCHIVES)
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive's contents, read-only for the tests."""
    return unpack(request.param, tmp_path_factory.mktemp("archive"))


@pytest_asyncio.fixture(params=STATES)
async def router(
    request: pytest.FixtureRequest,
    unpacked: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Router]:
    """Today's code, embedded, on a directory of the archive; its calibration stays as it is."""
    monkeypatch.setattr(Maintenance, "recalibration_due", False)
    shutil.copytree(unpacked / request.param, tmp_path / "old")
    router = await open_embedded(tmp_path / "old", SHARDS, QUIET)
    try:
        yield router
    finally:
        await router.close()


def plain(ids: IdArray) -> list[int | str]:
    return [id_ if isinstance(id_, str) else int(id_) for id_ in ids.tolist()]


def told(shard: ShardDescription) -> dict[str, Any]:
    """Return of a description what the archive has of it."""
    ledger = asdict(shard.ledger)
    assert ledger.pop("lost") == 0
    return {
        "state": shard.state.value,
        "generation": shard.generation,
        "nlist": shard.nlist,
        "nprobe": shard.nprobe,
        "candidates": shard.candidates,
        "rows_trained_on": shard.rows_trained_on,
        "last_trained_at": shard.last_trained_at,
        "measured_recall": shard.measured_recall,
        "ledger": ledger,
    }


@pytest.mark.parametrize("name", CONFIGS)
async def test_a_collection_is_what_it_was(router: Router, unpacked: Path, name: str) -> None:
    expected = Answers(unpacked, name)
    described = await router.describe(name)
    assert described.config == CONFIGS[name]
    assert described.incarnation == expected.json["incarnation"]
    assert [told(shard) for shard in described.shards] == expected.json["shards"]


@pytest.mark.parametrize("name", CONFIGS)
async def test_every_row_is_what_it_was(router: Router, unpacked: Path, name: str) -> None:
    expected = Answers(unpacked, name)
    include = Include(vectors=True, metadata=True)
    listed = await router.list_rows(ListRequest(collection=name, page_size=1_000, include=include))
    assert sorted(plain(listed.ids)) == expected.json["ids"]
    ids = listed.ids.copy()
    ids[:] = expected.json["ids"]
    rows = await router.get(GetRequest(collection=name, ids=ids, include=include))
    assert plain(rows.ids) == expected.json["ids"]
    assert rows.vectors is not None
    assert rows.metadata is not None
    np.testing.assert_array_equal(rows.vectors, expected.arrays["vectors"])
    assert [packed.hex() for packed in rows.metadata] == expected.json["metadata"]


@pytest.mark.parametrize("key", FILTERS)
async def test_a_filter_passes_what_it_passed(router: Router, unpacked: Path, key: str) -> None:
    expected = Answers(unpacked, "words").json["filters"][key]
    found = await router.get(GetRequest(collection="words", filter=FILTERS[key]))
    assert sorted(plain(found.ids)) == expected
    counted = await router.count(CountRequest(collection="words", filter=FILTERS[key]))
    assert counted == len(expected)


SEARCHES: Final = [
    *((name, key) for name in CONFIGS for key in EFFORTS),
    *(("words", f"filter_{key}") for key in FILTERS),
]


@pytest.mark.parametrize(("name", "key"), SEARCHES)
async def test_a_search_finds_what_it_found(
    router: Router, unpacked: Path, name: str, key: str
) -> None:
    expected = Answers(unpacked, name)
    assert set(expected.json["searches"]) == {of for of_name, of in SEARCHES if of_name == name}
    request = SearchRequest(
        collection=name,
        queries=expected.queries,
        k=10,
        effort=EFFORTS.get(key, Effort()),
        filter=FILTERS.get(key.removeprefix("filter_")),
    )
    found = await router.search(request)
    assert plain(found.hits.ids) == expected.json["searches"][key]
    np.testing.assert_array_equal(found.hits.counts, expected.arrays[f"{key}.counts"])
    np.testing.assert_allclose(found.hits.scores, expected.arrays[f"{key}.scores"], rtol=1e-5)


async def test_an_index_that_older_rules_calibrated_is_calibrated_again_and_not_retrained(
    tmp_path: Path,
) -> None:
    unpack("data_directory", tmp_path)
    embedded = await open_embedded(tmp_path / "closed", SHARDS, QUIET)
    try:
        before = json.loads((tmp_path / "answers.json").read_text())["words"]["shards"]
        deadline = time.monotonic() + 30
        while True:
            shards = (await embedded.describe("words")).shards
            if all(shard.calibrated_at for shard in shards):
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    finally:
        await embedded.close()
    for shard, old in zip(shards, before, strict=True):
        assert (shard.generation, shard.last_trained_at) == (
            old["generation"],
            old["last_trained_at"],
        )
        assert shard.calibration_rows > 0
        assert 0 < shard.calibration_queries <= shard.calibration_rows
        assert shard.rows_changed_since == 0


async def test_it_takes_writes_again(router: Router) -> None:
    before = await router.describe("points")
    vectors = np.ones((3, 8), dtype=np.float32)
    ids = np.array([1_000, 1_001, 120])  # the last of them exists
    written = await router.upsert(UpsertRequest(collection="points", ids=ids, vectors=vectors))
    assert written.accepted == 3
    after = (await router.describe("points")).ledger
    assert after.adds_up
    assert after == replace(
        before.ledger,
        accepted=before.ledger.accepted + 3,
        buffered=before.ledger.buffered + 2,
        replaced=before.ledger.replaced + 1,
    )
