"""`export`, and `ingest` of what it wrote: the same rows, in either kind of file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run
from vectorshard.cli.vector_files import UnreadableFile, open_vectors
from vectorshard.shard.types import FieldType, FilterField, IdType, Metric

pytest.importorskip("pyarrow")

DIM = 3
ROWS = 25
FIELDS = (FilterField("lang", FieldType.KEYWORD),)
KINDS = (".parquet", ".npz")


def fill(client: ClientInMemory, id_type: IdType, metric: Metric = Metric.L2) -> None:
    """Make a collection of rows, every third without metadata."""
    client.create_collection(
        "w", dim=DIM, metric=metric, id_type=id_type, target_recall=0.9, filter_fields=FIELDS
    )
    numbers = list(range(ROWS))
    ids = (
        np.array(numbers, dtype=np.int64) - 2**62
        if id_type is IdType.INT64
        else np.array([f"wört {number}\n" for number in numbers], dtype=object)
    )
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    metadata: list[dict[str, object]] = [
        {"lang": "dé", "n": number, "x": [0.1, None, {"y": True}]} if number % 3 else {}
        for number in numbers
    ]
    client.upsert("w", ids, vectors, metadata)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pages, and as many groups of rows."""
    monkeypatch.setattr("vectorshard.cli.export.PAGE_ROWS_MAX", 10)


@pytest.mark.parametrize("id_type", list(IdType))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_and_ingested_is_the_same(
    run: Run, client: ClientInMemory, tmp_path: Path, kind: str, id_type: IdType
) -> None:
    fill(client, id_type)
    file = tmp_path / f"rows{kind}"
    ended = run("export", "w", "--to", file)
    assert ended.exit_code == 0, ended.output
    assert f"{ROWS:,} rows in {file}" in ended.output
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "what it wrote on the way"
    for command in ("ingest", "import"):
        ended = run(command, file, "--collection", command, "--batch", 7)
        assert ended.exit_code == 0, ended.output
        assert list(client.rows[command]) == list(client.rows["w"])
        for id_, vector in client.rows["w"].items():
            np.testing.assert_array_equal(client.rows[command][id_], vector)
            assert client.metadata.get((command, id_)) == client.metadata.get(("w", id_))
        made, source = client.collections[command], client.collections["w"]
        assert (made.metric, made.filter_fields) == (source.metric, FIELDS)
        assert (made.target_recall, made.id_type) == (0.9, id_type)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_rows_end_an_export_or_are_left_out_and_named(
    run: Run, client: ClientInMemory, tmp_path: Path, kind: str
) -> None:
    fill(client, IdType.STRING)
    client.damaged = ("wört 4\n",)
    file = tmp_path / f"rows{kind}"
    refused = run("export", "w", "--to", file)
    assert refused.exit_code == 1
    assert not list(tmp_path.iterdir()), "an incomplete file stays"
    ended = run("export", "w", "--to", file, "--skip-damaged")
    assert ended.exit_code == 1, "it is not all"
    assert "1 damaged row left out, with the ids: 'wört 4\\n'" in ended.output
    with open_vectors(file) as source:
        assert source.rows == ROWS - 1


def test_an_export_says_that_vectors_are_unit_vectors_and_replaces_no_file(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    fill(client, IdType.INT64, Metric.COSINE)
    file = tmp_path / "rows.npz"
    assert "the vectors have norm 1" in run("export", "w", "--to", file).output
    assert "exists already" in run("export", "w", "--to", file).stderr
    assert "must be .parquet or .npz" in run("export", "w", "--to", tmp_path / "rows.csv").stderr
    absent = tmp_path / "absent"
    for name in ("rows.npz", "rows.parquet"):
        refused = run("export", "w", "--to", absent / name)
        assert refused.stderr.splitlines()[-1] == f"error: to: {absent}: there is no such directory"


def test_an_empty_collection_is_exported_too(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    client.create_collection("w", dim=DIM, metric=Metric.L2, id_type=IdType.STRING)
    for kind in KINDS:
        file = tmp_path / f"rows{kind}"
        assert run("export", "w", "--to", file).exit_code == 0
        assert run("ingest", file, "--collection", f"c{kind[1:]}").exit_code == 0
        assert client.collections[f"c{kind[1:]}"].id_type is IdType.STRING


def test_an_id_that_npz_does_not_keep_is_refused(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    fill(client, IdType.STRING)
    client.upsert("w", np.array(["a\0"], dtype=object), np.ones((1, DIM), dtype=np.float32))
    refused = run("export", "w", "--to", tmp_path / "rows.npz")
    assert "ends with NUL" in refused.stderr
    assert not list(tmp_path.iterdir())
    assert run("export", "w", "--to", tmp_path / "rows.parquet").exit_code == 0


def test_without_pyarrow_one_line_says_what_to_install(
    run: Run, client: ClientInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(client, IdType.INT64)
    file = tmp_path / "rows.parquet"
    assert run("export", "w", "--to", file).exit_code == 0
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for command in (("export", "w", "--to", tmp_path / "other.parquet"), ("ingest", file)):
        collection = () if command[0] == "export" else ("--collection", "w")
        ended = run(*command, *collection)
        assert ended.exit_code == 1
        assert "pip install 'vectorshard[parquet]'" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_files_of_other_products_are_read_or_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def file(**columns: object) -> Path:
        path = tmp_path / "other.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    rows = [[1.0, 2.0], [3.0, 4.0]]
    with open_vectors(file(vector=rows, name=["a", "b"]), ids_key="name") as source:
        ((ids, vectors),) = source.batches(10)
        assert ids.tolist() == ["a", "b"]
        assert vectors.tolist() == rows
        assert source.metadata(0, 2) is None
    with open_vectors(file(emb=rows), vectors_key="emb") as source:
        assert source.ids is None
    with pytest.raises(UnreadableFile, match="no array 'vector'; the file contains: emb"):
        open_vectors(file(emb=rows)).__enter__()
    with pytest.raises(UnreadableFile, match="not a list of numbers"):
        open_vectors(file(vector=["a", "b"])).__enter__()
    for wrong in ([[1.0, 2.0], [3.0]], [[1.0, 2.0], None], [[1.0, 2.0], [1.0, 2.0, 3.0]]):
        with open_vectors(file(vector=wrong)) as source, pytest.raises(ValueError, match="vector"):
            list(source.batches(10))
    for text in ("no json", "[1]"):
        with (
            open_vectors(file(vector=rows, metadata=["{}", text])) as source,
            pytest.raises(UnreadableFile, match="row 1: its metadata"),
        ):
            source.metadata(0, 2)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UnreadableFile, match="ends too early"):
        open_vectors(tmp_path / "cut.parquet").__enter__()
