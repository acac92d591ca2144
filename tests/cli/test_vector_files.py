"""Reading files of vectors: what a batch holds, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.cli.vector_files import UnreadableFile, VectorFile, open_vectors
from vectorshard.shard.types import Float32Array, IdType, Metric

WORDS = Path(__file__).parents[2] / "examples" / "words-20k.npz"


def write_hdf5(path: Path, distance: str | None, **arrays: Any) -> Path:
    """Write an ann-benchmarks file."""
    with h5py.File(path, "w") as datasets:
        for name, array in arrays.items():
            datasets[name] = array
        if distance is not None:
            datasets.attrs["distance"] = distance
    return path


@given(
    rows=st.integers(0, 40),
    batch_rows=st.integers(1, 50),
    dtype=st.sampled_from(["<f2", "<f4", ">f4", "<f8", "i1", "u2"]),
)
def test_batches_hold_every_row_once_in_order(rows: int, batch_rows: int, dtype: str) -> None:
    vectors = np.arange(rows * 3).reshape(rows, 3).astype(dtype)
    batches = list(VectorFile(vectors=vectors, ids=None, metric=None).batches(batch_rows))
    assert all(len(ids) == len(block) <= batch_rows for ids, block in batches)
    assert [id_ for ids, _ in batches for id_ in ids] == list(range(rows))
    expected = np.float16 if dtype == "<f2" else np.float32
    assert all(block.dtype == expected and block.flags.c_contiguous for _, block in batches)
    if batches:
        assert np.array_equal(np.concatenate([block for _, block in batches]), vectors)


def test_a_npy_file_is_numbered_by_row(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.eye(4, dtype=np.float32))
    with open_vectors(path) as opened:
        assert (opened.rows, opened.dim, opened.id_type, opened.metric) == (
            4,
            4,
            IdType.INT64,
            None,
        )
        [(ids, vectors)] = opened.batches(10)
    assert ids.dtype == np.int64
    assert ids.tolist() == [0, 1, 2, 3]
    assert np.array_equal(vectors, np.eye(4))


@pytest.mark.parametrize(
    ("column", "id_type", "ids"),
    [
        (np.array(["é", "b"]), IdType.STRING, ["é", "b"]),
        (np.array(["é".encode(), b"b"]), IdType.STRING, ["é", "b"]),
        (np.array([7, -8], dtype=np.int32), IdType.INT64, [7, -8]),
        (np.array([7, 2**63 - 1], dtype=np.uint64), IdType.INT64, [7, 2**63 - 1]),
    ],
)
def test_ids_of_a_npz_are_strings_or_int64(
    tmp_path: Path, column: Any, id_type: IdType, ids: list[Any]
) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, embeddings=np.eye(2), names=column)
    with open_vectors(path, vectors_key="embeddings", ids_key="names") as opened:
        assert opened.id_type is id_type
        [(read, _)] = opened.batches(10)
    assert read.dtype == (object if id_type is IdType.STRING else np.int64)
    assert read.tolist() == ids


def test_an_array_named_ids_is_taken_without_being_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, vectors=np.eye(2), ids=np.array([5, 6]))
    with open_vectors(path) as opened:
        assert opened.ids is not None
        assert opened.ids.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("distance", "metric"),
    [
        ("angular", Metric.COSINE),
        ("euclidean", Metric.L2),
        ("dot", Metric.INNER_PRODUCT),
        (None, None),
    ],
)
def test_an_ann_benchmarks_file_brings_train_and_its_metric(
    tmp_path: Path, distance: str | None, metric: Metric | None
) -> None:
    path = write_hdf5(tmp_path / "set.hdf5", distance, train=np.eye(3), test=np.zeros((1, 3)))
    with open_vectors(path) as opened:
        assert opened.metric is metric
        blocks = [block for _, block in opened.batches(2)]
    assert np.array_equal(np.concatenate(blocks), np.eye(3))


def test_string_ids_of_an_hdf5_file_are_read(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "set.h5", None, train=np.eye(2), ids=["é", "b"])
    with open_vectors(path) as opened:
        assert opened.id_type is IdType.STRING
        assert opened.ids is not None
        assert opened.ids.tolist() == ["é", "b"]


def test_the_words_are_twenty_thousand_vectors_with_their_words() -> None:
    with open_vectors(WORDS, ids_key="words") as opened:
        assert (opened.rows, opened.dim, opened.id_type) == (20_000, 100, IdType.STRING)
        ids, vectors = next(opened.batches(4))
    assert ids.tolist() == ["the", "and", "for", "that"]
    assert vectors.dtype == np.float16


@pytest.mark.parametrize(
    ("arrays", "keys", "message"),
    [
        ({"vectors": np.zeros(3)}, {}, "must be a (rows, dim) matrix"),
        ({"vectors": np.zeros((2, 3), dtype=complex)}, {}, "real numbers"),
        ({"vectors": np.array([["a"]])}, {}, "real numbers"),
        ({"x": np.eye(2)}, {}, "no array 'vectors'; the file contains: x"),
        ({"vectors": np.eye(2)}, {"ids_key": "names"}, "no array 'names'"),
        ({"vectors": np.eye(2), "ids": np.arange(3)}, {}, "ids must have shape (2,), not (3,)"),
        ({"vectors": np.eye(2), "ids": np.ones(2)}, {}, "ids must be int64 or strings"),
        ({"vectors": np.eye(1), "ids": np.array([2**63], dtype=np.uint64)}, {}, "int64"),
        ({"vectors": np.eye(1), "ids": np.array([None])}, {}, "Python objects"),
    ],
)
def test_a_npz_that_holds_no_vectors_is_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, Any], keys: dict[str, str], message: str
) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, **arrays)
    with pytest.raises(UnreadableFile, match=re.escape(message)), open_vectors(path, **keys):
        pass


@pytest.mark.parametrize("name", ["absent.npy", "absent.npz", "absent.hdf5", "words.txt"])
def test_a_missing_file_or_another_kind_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableFile, match=name), open_vectors(tmp_path / name):
        pass


@pytest.mark.parametrize("suffix", ["npy", "npz", "hdf5"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01"])
def test_a_damaged_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="damaged"), open_vectors(path):
        pass


def store(path: Path, vectors: Float32Array, *, compressed: bool = False) -> None:
    """Write vectors to a file of the kind that its name says."""
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".npz":
        (np.savez_compressed if compressed else np.savez)(path, vectors=vectors)
    elif path.suffix == ".hdf5":
        write_hdf5(path, "angular", train=vectors)
    else:
        arrow = pytest.importorskip("pyarrow")
        table = arrow.table({"id": range(len(vectors)), "vector": [*vectors]})
        pytest.importorskip("pyarrow.parquet").write_table(table, path)


@pytest.mark.parametrize("kept", [6, 60, 0.5, -10])
@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "hdf5"])
def test_a_file_that_ends_too_early_is_said_to(tmp_path: Path, suffix: str, kept: float) -> None:
    vectors = np.random.default_rng(1).random((100, 20), dtype=np.float32)
    whole = tmp_path / f"whole.{suffix}"
    store(whole, vectors)
    content = whole.read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    text = r"cut.*: the file ends too early, after [\d,]+ bytes"
    with pytest.raises(UnreadableFile, match=text), open_vectors(cut):
        pass
    with open_vectors(whole) as read:
        assert read.rows == 100


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet", "hdf5"])
@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "the file is empty"), (b"1,2,3\n" * 50, "it does not begin like one")],
)
def test_an_empty_file_and_one_of_another_kind_are_said_to_be(
    tmp_path: Path, suffix: str, content: bytes, text: str
) -> None:
    path = tmp_path / f"vectors.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=text), open_vectors(path):
        pass


@pytest.mark.parametrize(
    ("suffix", "byte", "text"),
    [
        ("npy", 10, "cannot read: "),
        ("npz", 29, "cannot read: EOFError"),
        ("npz", 62, "the file is damaged: "),
        ("hdf5", 8, "cannot read: "),
        ("hdf5", 16, "cannot read: "),
        ("hdf5", 24, "cannot read: "),
    ],
)
def test_a_damaged_file_that_is_whole_is_not_said_to_end_too_early(
    tmp_path: Path, suffix: str, byte: int, text: str
) -> None:
    vectors = np.random.default_rng(1).random((100, 20), dtype=np.float32)
    path = tmp_path / f"vectors.{suffix}"
    store(path, vectors, compressed=True)
    content = bytearray(path.read_bytes())
    content[byte] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"vectors\.\w+: {text}"), open_vectors(path):
        pass


def test_a_npy_of_objects_is_not_said_to_end_too_early(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([[1, None]] * 1_000), allow_pickle=True)
    with (
        pytest.raises(UnreadableFile, match="it holds Python objects"),
        open_vectors(tmp_path / "objects.npy"),
    ):
        pass


def test_a_npz_of_other_bytes_than_were_written_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, vectors=np.random.default_rng(1).random((100, 20)))
    content = bytearray(path.read_bytes())
    content[5_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match="the file is damaged: Bad CRC"), open_vectors(path):
        pass


def test_a_npy_under_the_name_of_a_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    with path.open("wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(UnreadableFile, match="one unnamed array"), open_vectors(path):
        pass


def test_a_distance_without_a_metric_is_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "set.hdf5", "jaccard", train=np.eye(2))
    with pytest.raises(UnreadableFile, match="jaccard"), open_vectors(path):
        pass


def test_a_failure_of_the_reader_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.eye(2))
    with pytest.raises(ValueError, match="mine") as caught, open_vectors(path):
        raise ValueError("mine")
    assert not isinstance(caught.value, UnreadableFile)
