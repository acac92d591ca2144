"""JSON on disk: a record survives, its bytes stay as they were, and anything else is refused."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.storage.data_directory import DataDirectory, ShardIdentity
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord, from_json, to_json
from vectorshard.shard.storage.row_store_format import (
    OPTIONAL_OF_INDEX_FILE,
    IndexFile,
    LastCompaction,
    config_to_json,
)
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    IdType,
    IndexConfig,
    IndexKind,
    Metric,
    NlistRule,
)

ARCHIVE = Path(__file__).parents[2] / "fixtures" / "data_directory.tar.gz"

counts = st.integers(0, 2**32 - 1)
configs = st.builds(
    CollectionConfig,
    name=st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True),
    dim=counts,
    metric=st.sampled_from(Metric),
    id_type=st.sampled_from(IdType),
    index=st.builds(
        IndexConfig,
        kind=st.sampled_from(IndexKind),
        min_training_size=counts,
        nlist_rule=st.sampled_from(NlistRule),
        nlist=counts,
    ),
    target_recall=st.floats(0, 1),
    filter_fields=st.lists(
        st.builds(FilterField, st.text(), st.sampled_from(FieldType)), max_size=4
    ).map(tuple),
)
CONFIG = CollectionConfig(
    name="a",
    dim=2,
    metric=Metric.L2,
    id_type=IdType.INT64,
    filter_fields=(FilterField("lang", FieldType.KEYWORD),),
)


def config_from_json(text: str) -> CollectionConfig:
    return from_json(CollectionConfig, text, "store.db: configuration")


@given(configs)
def test_a_configuration_comes_back_as_it_was_written(config: CollectionConfig) -> None:
    assert config_from_json(config_to_json(config)) == config


@given(configs)
def test_equal_configurations_have_equal_text(config: CollectionConfig) -> None:
    assert config_to_json(config_from_json(config_to_json(config))) == config_to_json(config)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "{}", '{"name": "a"}', '{"index": 3}', '"text"', "\0"),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRecord, match=r"^store\.db: configuration: "):
        config_from_json(text)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"l2"', '"hamming"', "metric: expected Metric, found 'hamming'"),
        ('"dim":2', '"dim":"2"', "dim: expected int, found '2'"),
        ('"dim":2', '"dim":2.0', "dim: expected int, found 2.0"),
        ('"dim":2', '"dim":true', "dim: expected int, found True"),
        ('"dim":2,', "", "missing field dim"),
        ('"dim":2', '"dim":2,"rank":3', "unknown field rank"),
        ('"target_recall":0.95', '"target_recall":false', "target_recall: expected float"),
        (',"target_recall":0.95', "", "missing field target_recall"),
        ('"nlist":0,', "", "index: missing field nlist"),
        ('"keyword"', '"list"', r"filter_fields\[0\]: type: expected FieldType, found 'list'"),
        ('{"name":"lang"', '{"title":"lang"', r"filter_fields\[0\]: unknown field title"),
        ('[{"name":"lang","type":"keyword"}]', "{}", "filter_fields: expected tuple"),
        ('[{"name":"lang","type":"keyword"}]', "[3]", r"filter_fields\[0\]: expected FilterField"),
    ],
)
def test_an_unknown_missing_or_ill_typed_field_is_refused_by_its_name(
    old: str, new: str, told: str
) -> None:
    text = config_to_json(CONFIG)
    assert old in text
    with pytest.raises(InvalidRecord, match=rf"^store\.db: configuration: {told}"):
        config_from_json(text.replace(old, new))


def test_an_integer_where_a_fraction_may_be_stays_one() -> None:
    text = config_to_json(CONFIG).replace("0.95", "1")
    assert config_to_json(config_from_json(text)) == text


# ---- bytes written before ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The data directories of two shards that an earlier release wrote."""
    directory = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")
    return sorted((directory / "closed").iterdir())


def properties_of(shards: list[Path]) -> Iterator[dict[str, str]]:
    """Yield the properties of every collection."""
    for database in (file for shard in shards for file in shard.glob("collections/*/store.db")):
        connection = sqlite3.connect(database)
        yield dict(connection.execute("SELECT key, value FROM properties"))
        connection.close()


def test_the_records_of_a_row_store_are_written_as_they_were(shards: list[Path]) -> None:
    records = 0
    for properties in properties_of(shards):
        config = properties["configuration"]
        assert config_to_json(config_from_json(config)) == config
        if rebuilt := properties.get("rebuilt"):
            assert to_json(from_json(LastCompaction, rebuilt, "rebuilt")) == rebuilt
        if index_file := properties.get("index_file"):
            stored = from_json(IndexFile, index_file, "index_file", OPTIONAL_OF_INDEX_FILE)
            written = json.loads(to_json(stored))
            later = {"calibration_basis", "distance_when_trained", "candidate_price"}
            assert {key: written[key] for key in written.keys() - later} == json.loads(index_file)
            records += 1
    assert records == len(shards) == 2


def test_an_identity_is_written_as_it_was_and_whose_it_is(
    shards: list[Path], tmp_path: Path
) -> None:
    for shard in shards:
        stored = json.loads((shard / "shard.json").read_bytes())
        fields = {key: value for key, value in stored.items() if key != "format_version"}
        slots = tuple(tuple(ends) for ends in fields.pop("slots"))
        identity = ShardIdentity(slots=slots, **fields)
        path = tmp_path / shard.name
        DataDirectory.open(Disk(), path, identity, new_directory=lambda: "mine").close()
        written = json.loads((path / "shard.json").read_bytes())
        assert (written.pop("directory"), written.pop("life")) == ("mine", 1)
        assert type(written.pop("crc32c")) is int
        assert (stored.pop("format_version"), written.pop("format_version")) == (1, 2)
        assert written == stored
        DataDirectory.open(Disk(), shard, identity).close()


def test_an_index_file_of_the_first_releases_lacks_two_fields(shards: list[Path]) -> None:
    for properties in properties_of(shards):
        if "index_file" not in properties:
            continue
        parsed = json.loads(properties["index_file"])
        for name in OPTIONAL_OF_INDEX_FILE:
            parsed.pop(name, None)
        text = json.dumps(parsed)
        stored = from_json(IndexFile, text, "index_file", OPTIONAL_OF_INDEX_FILE)
        assert (stored.imbalance_when_trained, stored.filter_margins) == (1.0, ())
        with pytest.raises(InvalidRecord, match="index_file: missing field calibration_basis"):
            from_json(IndexFile, text, "index_file")
