"""Where `ingest` stops: which row of the file, what is written, and how to go on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run

ROWS = 10


def vectors_with(path: Path, *invalid: int) -> Path:
    """Write a file of ten vectors, of which these are not numbers."""
    vectors = np.arange(1, 2 * ROWS + 1, dtype=np.float32).reshape(ROWS, 2)
    vectors[list(invalid)] = np.nan
    np.save(path / "v.npy", vectors)
    return path / "v.npy"


def test_an_invalid_row_is_named_by_its_number_in_the_file(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    file = vectors_with(tmp_path, 6)
    ended = run("ingest", file, "--collection", "w", "--batch", 4)
    assert ended.exit_code == 1
    stopped, error = ended.stderr.splitlines()
    assert stopped == (
        f"stopped: the first 4 of 10 rows are written; go on with --from-row 4 for {file}; "
        "--skip-invalid leaves out invalid rows"
    )
    assert error == "error: vectors: row 6: contains NaN"
    assert sorted(client.rows["w"]) == [0, 1, 2, 3]


def test_an_ingest_that_wrote_nothing_says_so(run: Run, tmp_path: Path) -> None:
    ended = run("ingest", vectors_with(tmp_path, 0), "--collection", "w")
    assert ended.exit_code == 1
    assert ended.stderr.splitlines()[0] == (
        "stopped: none of 10 rows is written; --skip-invalid leaves out invalid rows"
    )


def test_an_ingest_goes_on_from_a_row(run: Run, client: ClientInMemory, tmp_path: Path) -> None:
    ended = run("ingest", vectors_with(tmp_path, 2), "--collection", "w", "--from-row", 3)
    assert ended.exit_code == 0, ended.output
    assert "7 rows accepted, 0 refused" in ended.output
    assert sorted(client.rows["w"]) == [3, 4, 5, 6, 7, 8, 9]
    assert client.rows["w"][9].tolist() == [19, 20]


def test_invalid_rows_are_skipped_on_request_counted_and_named(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    file = vectors_with(tmp_path, 1, 5, 6, 7)
    ended = run("ingest", file, "--collection", "w", "--batch", 4, "--skip-invalid")
    assert ended.exit_code == 0, ended.output
    assert "6 rows accepted, 0 refused, 4 skipped" in ended.output
    assert re.findall(r"row (\d+): contains NaN", ended.output) == ["1", "5", "6", "7"]
    assert sorted(client.rows["w"]) == [0, 2, 3, 4, 8, 9]


def test_a_batch_without_a_valid_row_is_skipped(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    file = vectors_with(tmp_path, 4, 5, 6, 7)
    ended = run("ingest", file, "--collection", "w", "--batch", 4, "--skip-invalid", "--json")
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)
    assert (told["accepted"], [each["row"] for each in told["skipped"]]) == (6, [4, 5, 6, 7])
    assert told["ledger"]["accepted"] == 6
    assert len(client.rows["w"]) == 6


def test_other_errors_are_not_skipped(
    run: Run, client: ClientInMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.missing_shard = 100
    monkeypatch.setattr("time.sleep", lambda _: None)
    ended = run("ingest", vectors_with(tmp_path), "--collection", "w", "--skip-invalid")
    assert ended.exit_code == 1
    assert "none of 10 rows is acknowledged; repeat the command" in ended.stderr


def test_ctrl_c_says_what_is_written_and_how_to_go_on(
    run: Run, client: ClientInMemory, tmp_path: Path
) -> None:
    client.interrupted_at = 9
    ended = run(
        "ingest", vectors_with(tmp_path, 1), "--collection", "w", "--batch", 4, "--skip-invalid"
    )
    assert ended.exit_code == 130
    assert (
        "the first 8 of 10 rows are written but for 1, which were refused or skipped"
        in ended.stderr
    )
    assert "go on with --from-row 8 for " in ended.stderr
