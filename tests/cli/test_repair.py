"""`vectorshard repair`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.shard.engine.contents import DIM
from tests.shard.engine.damaged_directories import LOG, Killed, flip, killed
from vectorshard.cli.repair import told
from vectorshard.shard.errors import DataDirectoryLocked, DataDirectoryTooNew
from vectorshard.shard.storage import repair as repairs
from vectorshard.shard.storage.repair_findings import DamagedRow, Outcome, Repair

NEWEST_ROW = 859


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    return killed(tmp_path_factory.mktemp("history"), compacted=False)


def test_a_damaged_log_is_shown_repaired_and_sound_then(
    run: Run, history: Killed, tmp_path: Path
) -> None:
    directory = tmp_path / "shard-0"
    place = history.copy(directory)
    sound = run("repair", directory)
    assert (sound.exit_code, sound.output.count(": sound")) == (0, 2)
    flip(place / LOG, 8 * 5_001)
    shown = run("repair", directory, "--work", tmp_path)
    assert shown.exit_code == 1
    assert "collection words: damaged, can be repaired" in shown.output
    assert "store.db-wal: " in shown.output
    assert "--write" in shown.output
    done = run("repair", directory, "--collection", "words", "--write")
    assert done.exit_code == 1
    assert "collection words: repaired" in done.output
    assert f"kept in {place}.damaged" in done.output
    assert run("repair", directory).exit_code == 0


def test_json_has_the_same(run: Run, history: Killed, tmp_path: Path) -> None:
    place = history.copy(tmp_path / "shard-0")
    (place / "log-end").unlink()
    result = run("repair", tmp_path / "shard-0", "--json")
    directory, words = json.loads(result.output)
    assert (directory["collection"], directory["outcome"]) == ("", "sound")
    assert (words["collection"], words["outcome"]) == ("words", "repairable")
    assert words["findings"][0]["file"] == "log-end"
    assert words["whole"] is True


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere"], 13, "is not a directory"),
        (["."], 13, "is no data directory"),
        (["shard-0", "--collection", "none"], 1, "has no collection 'none'"),
        (["shard-0", "--work", "nowhere"], 1, "nowhere is not a directory"),
    ],
)
def test_what_cannot_be_begun_is_one_line(
    run: Run, history: Killed, tmp_path: Path, arguments: Sequence[str], code: int, text: str
) -> None:
    (tmp_path / "empty").mkdir()
    history.copy(tmp_path / "shard-0")
    path = tmp_path / ("empty" if arguments[0] == "." else arguments[0])
    result = run("repair", path, *arguments[1:])
    assert result.exit_code == code
    assert text in result.output
    assert result.output.startswith("error: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataDirectoryLocked("in use by process 7"), 11),
        (DataDirectoryTooNew("format version 99"), 12),
        (OSError(5, "Input/output error"), 16),
        (OSError(28, "No space left on device"), 15),
    ],
)
def test_a_refusal_has_the_code_of_a_start(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def refuse(*_: object) -> list[Repair]:
        raise error

    monkeypatch.setattr(repairs, "repair", refuse)
    assert run("repair", tmp_path).exit_code == code


def test_damaged_rows_alone_are_named_with_their_cure_whether_written_or_not(
    run: Run, history: Killed, tmp_path: Path
) -> None:
    directory = tmp_path / "shard-0"
    (path,) = history.copy(directory).glob("rows-*")
    with path.open("r+b") as file:
        file.seek(NEWEST_ROW * DIM * 4)
        file.write(b"\x55" * DIM * 4)
    for written in ((), ("--write",), ("--write",), ()):
        result = run("repair", directory, *written)
        assert result.exit_code == 1
        assert "collection words: sound but for 1 damaged row\n" in result.output
        assert (
            "upsert or delete these ids, or delete them here with --write --drop" in result.output
        )
        assert "Repeat" not in result.output
    assert run("repair", directory, "--write", "--drop-damaged").exit_code == 1
    assert run("repair", directory).exit_code == 0


def test_what_is_lost_is_told_row_by_row() -> None:
    rows = [DamagedRow(row=n, id=f"id-{n}", found="", restored=n == 3) for n in range(15)]
    found = Repair(
        collection="words",
        outcome=Outcome.REPAIRABLE,
        damaged_rows=rows,
        commits_lost=(7, 8),
        rows_lost=20,
        rows_back=3,
        whole=False,
    )
    text = "\n".join(told(Path("data"), [found], written=False))
    assert "1 row restored: id-3" in text
    assert "14 rows damaged: id-0, id-1, id-2, id-4, " in text
    assert "id-10 and 4 others" in text
    assert "2 commits lost: 7, 8" in text
    assert "20 rows lost; their ids: unknown" in text
    assert "3 rows that they replaced or deleted may be back" in text
    assert "accept-loss" in text
    later = Repair(collection="words", gave_up=True)
    *_, last = told(Path("data"), [later], written=False)
    assert last.startswith("  an earlier repair gave up commits: the shard is MISSING")
    found.rows_lost = found.rows_back = None
    text = "\n".join(told(Path("data"), [found], written=False))
    assert "rows of them: unknown" in text


def test_a_refusal_names_the_cure(run: Run, history: Killed, tmp_path: Path) -> None:
    place = history.copy(tmp_path / "shard-0")
    place.rename(place.with_name("moved"))
    result = run("repair", tmp_path / "shard-0", "--write")
    assert result.exit_code == 14
    assert "collection words: not repaired" in result.output
    assert "Put the collection's directory back" in result.output
    assert "its files are of collection 'words'" in result.output
