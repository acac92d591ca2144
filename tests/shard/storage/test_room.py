"""Work in the background waits for room on the disk, and says so once."""

from __future__ import annotations

import errno

import pytest
from structlog.testing import capture_logs

from vectorshard.shard.storage.room import RETRY_S, PutOff, Room


class Disk:
    """Free bytes, and a clock."""

    free = 100
    now = 0.0

    def room(self) -> Room:
        """Return the room that it has."""
        room = Room("words", lambda: self.now)
        room.shortage = lambda size: "too little" if size > self.free else ""
        return room


def test_work_without_room_is_put_off_until_there_is_room_and_logged_once() -> None:
    disk = Disk()
    room = disk.room()
    with capture_logs() as logged:
        for _ in range(2):
            with pytest.raises(PutOff, match="too little"), room.taken_by("compaction", 101):
                raise AssertionError("it was begun")
        assert room.is_waited_for
        assert not room.is_there_for("compaction")
        assert room.is_there_for("index file"), "another kind of work"
        disk.free = 101
        assert room.is_there_for("compaction")
        with room.taken_by("compaction", 101):
            pass
    assert not room.is_waited_for
    assert [(entry["log_level"], entry["work"]) for entry in logged] == [
        ("warning", "compaction"),
        ("info", "compaction"),
    ]


def test_work_that_meets_a_full_disk_is_put_off_for_a_while() -> None:
    disk = Disk()
    room = disk.room()
    with capture_logs() as logged, pytest.raises(PutOff), room.taken_by("index file", 10):
        raise OSError(errno.EDQUOT, "quota exceeded")
    assert [entry["log_level"] for entry in logged] == ["warning"]
    assert not room.is_there_for("index file")
    disk.now = RETRY_S
    assert room.is_there_for("index file")


def test_other_failures_are_those_of_the_work() -> None:
    room = Disk().room()
    with pytest.raises(OSError, match="input/output"), room.taken_by("index file", 10):
        raise OSError(errno.EIO, "input/output")
    assert not room.is_waited_for
