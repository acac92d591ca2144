"""The index on disk, so that a restart need not train (docs/formats.md).

Derived: a file that is missing, unreadable, damaged or of another row count is ignored, and its
rows are buffered again. Each checkpoint writes a new file, so a crash before it is recorded leaves
the last one intact.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from vectorshard.shard.index.calibration import Calibration, CalibrationPoint, SearchParameters
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk, is_disk_full
from vectorshard.shard.storage.room import Room
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import IndexFile
from vectorshard.shard.storage.store_files import read_file
from vectorshard.shard.types import Int64Array

INDEX_FILE: Final = "index file"
"""The work, as the log names it."""


def with_stored_index(
    directory: Path, row_store: RowStore, snapshot: Snapshot, repaired: Int64Array
) -> Snapshot:
    """Return a recovered snapshot with the stored index in it, or as it is without a sound one.

    `repaired` rows are sound, and the index may lack them: they were damaged once, int64.
    """
    stored = row_store.index_file
    if stored is None:
        return snapshot
    try:
        serialized = read_file(directory / stored.name)
    except OSError:
        return snapshot
    if checksum(serialized) != stored.crc32c:
        return snapshot
    try:
        ivf = IvfIndex.from_bytes(row_store.entry.config.dim, serialized)
    except RuntimeError:  # another version of FAISS may have written it
        return snapshot
    if ivf.rows != stored.absorbed_until - stored.rows_skipped:
        return snapshot
    index = TrainedIndex(
        ivf=ivf,
        generation=stored.generation,
        calibration=_calibration_of(stored),
        live_when_trained=stored.live_when_trained,
        rows_trained_on=stored.rows_trained_on,
        trained_at=stored.trained_at,
        training_s=stored.training_s,
        imbalance_when_trained=stored.imbalance_when_trained,
        distance_when_trained=stored.distance_when_trained,
        filter_margins=stored.filter_margins,
    )
    added = _add_missing(ivf, snapshot, repaired[repaired < stored.absorbed_until])
    return replace(
        snapshot,
        index=index,
        absorbed_until=stored.absorbed_until,
        rows_skipped=stored.rows_skipped - added,
        list_imbalance=ivf.list_imbalance,
    )


def _add_missing(ivf: IvfIndex, snapshot: Snapshot, rows: Int64Array) -> int:
    """Add those of some live rows that an index lacks; return how many."""
    if not len(rows):
        return 0
    missing = rows[ivf.lists_of_rows(int(rows[-1]) + 1)[rows] < 0]
    ivf.add(missing, snapshot.vectors_of(missing))
    return len(missing)


def store_index(
    disk: Disk,
    directory: Path,
    row_store: RowStore,
    snapshot: Snapshot,
    room: Room,
    *,
    again: bool = False,
) -> None:
    """Write the snapshot's index to a new file, record it, and remove the file before it.

    The caller keeps the index unchanged meanwhile. If the file holds this index already, only its
    calibration is recorded again, unless it is to be written `again`: a file in use is never
    written to, but replaced. Raises PutOff if the disk has no room: then the new file is gone.
    """
    index = snapshot.index
    if index is None:
        return
    name = f"index-{index.generation}-{snapshot.absorbed_until}.faiss"
    stored = row_store.index_file
    if stored is not None and stored.name == name and not again:
        with room.taken_by(INDEX_FILE, 0):
            row_store.set_index_file(
                replace(
                    stored,
                    calibration=_stored_points(index.calibration),
                    calibration_basis=index.calibration.basis,
                    candidate_price=index.calibration.candidate_price,
                )
            )
        return
    serialized = index.ivf.to_bytes()
    record = IndexFile(
        name=name,
        generation=index.generation,
        absorbed_until=snapshot.absorbed_until,
        rows_skipped=snapshot.rows_skipped,
        crc32c=checksum(serialized),
        file_bytes=len(serialized),
        live_when_trained=index.live_when_trained,
        rows_trained_on=index.rows_trained_on,
        trained_at=index.trained_at,
        training_s=index.training_s,
        imbalance_when_trained=index.imbalance_when_trained,
        distance_when_trained=index.distance_when_trained,
        filter_margins=index.filter_margins,
        calibration=_stored_points(index.calibration),
        calibration_basis=index.calibration.basis,
        candidate_price=index.calibration.candidate_price,
    )
    with room.taken_by(INDEX_FILE, len(serialized)):
        disk.write_new_file(directory / name, serialized.data)
        try:
            row_store.set_index_file(record)
        except Exception as error:
            if is_disk_full(error):  # it is not recorded, and needs the room of others
                with suppress(OSError):
                    disk.remove(directory / name)
            raise
    remove_stray_index_files(disk, directory, row_store)


def _stored_points(calibration: Calibration) -> tuple[tuple[float, ...], ...]:
    return tuple(
        (
            point.k,
            point.target_recall,
            point.parameters.nprobe,
            point.parameters.candidates,
            point.measured_recall,
            point.measured_recall_balanced,
        )
        for point in calibration.points
    )


def _calibration_of(stored: IndexFile) -> Calibration:
    """Return the stored calibration. The first releases wrote no recall of a balanced sample."""
    points = []
    for k, target_recall, nprobe, candidates, measured_recall, *balanced in stored.calibration:
        points.append(
            CalibrationPoint(
                k=int(k),
                target_recall=target_recall,
                parameters=SearchParameters(int(nprobe), int(candidates)),
                measured_recall=measured_recall,
                measured_recall_balanced=balanced[0] if balanced else 1.0,
            )
        )
    return Calibration(tuple(points), stored.calibration_basis, stored.candidate_price)


def remove_stray_index_files(disk: Disk, directory: Path, row_store: RowStore) -> None:
    """Remove index files that are not in use: older ones, and what a crash left."""
    current = row_store.index_file
    for path in directory.glob("index-*"):
        if current is None or path.name != current.name:
            disk.remove(path)
