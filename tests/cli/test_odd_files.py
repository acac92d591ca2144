"""Files whose rows or arrays are not what a file of vectors has: each is refused by its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest

from vectorshard.cli.vector_files import UnreadableFile, open_vectors

EMPTY: Any = h5py.Empty
ROWS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
IDS = [1, 2, 3]


def read(path: Path) -> None:
    """Read a whole file as `ingest` does, in batches of two rows."""
    with open_vectors(path) as file:
        for first, _ in enumerate(file.batches(2)):
            file.metadata(2 * first, 2)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"vector": [*ROWS[:2], None]}, "row 2: its vector is null"),
        ({"vector": [None, *ROWS[:2]]}, "row 0: its vector is null"),
        ({"vector": [*ROWS[:2], [1.0]]}, "row 2: its vector has 1 component, not 2"),
        ({"vector": [ROWS[0], [1.0, None], ROWS[1]]}, "row 1: .* a component that is null"),
        ({"vector": arrow.array([*ROWS[:2], None], arrow.list_(arrow.float32(), 2))}, "row 2"),
        ({"vector": ROWS, "id": [1, None, 3]}, "row 1: its id is null"),
        ({"vector": ROWS, "metadata": [{"a": 1}] * 3}, "'metadata' is struct<.*>, not text: JSON"),
        ({"vector": arrow.array([], arrow.list_(arrow.float32())), "id": []}, "no dim.* no rows"),
        ({"vector": arrow.array([[]] * 3, arrow.list_(arrow.float32()))}, "have no components"),
    ],
)
def test_an_odd_column_of_parquet_is_named_with_its_row(
    tmp_path: Path, columns: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(arrow.table({"id": IDS, **columns}), path)
    with pytest.raises(UnreadableFile, match=reason):
        read(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = [arrow.array(IDS), arrow.array(ROWS), arrow.array(ROWS)]
    table = arrow.table(columns, names=["id", "vector", "vector"])
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UnreadableFile, match="column 'vector' occurs twice"):
        read(path)


def test_what_is_no_array_of_an_hdf5_is_refused(tmp_path: Path) -> None:
    kinds: list[tuple[str, Callable[[Any], object], str]] = [
        ("group", lambda file: file.create_group("train/x"), "a group; it contains: train/x"),
        ("value", lambda file: file.create_dataset("train", data=1.0), "a single value"),
        ("none", lambda file: file.create_dataset("train", data=EMPTY("f")), "or none"),
    ]
    for name, make, reason in kinds:
        path = tmp_path / f"{name}.hdf5"
        with h5py.File(path, "w") as file:
            make(file)
        with pytest.raises(UnreadableFile, match=reason):
            read(path)


def test_python_objects_are_refused_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, vectors=ROWS, ids=np.array(["a", "b", "c"], dtype=object))
    with pytest.raises(UnreadableFile, match=r"Python objects: save arrays .*astype\(str\)"):
        read(path)


def test_an_empty_npz_is_said_to_contain_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path)
    with pytest.raises(UnreadableFile, match="the file contains: nothing"):
        read(path)
