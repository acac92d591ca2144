"""A shard keeps what it acknowledged, whenever the power fails: by the system calls that it makes.

Histories are lived by a real shard with its threads, in a program under the recorder of
`tests/crash_recorder`; some of their crash states are opened here. `make test-long` draws 20,000.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest

from tests.crash_recorder.live import Order
from tests.crash_recorder.loss import check_loss
from tests.crash_recorder.recorder import check_recording, compiler, operations, run_recorded
from tests.crash_recorder.states import Lived, check_lives, lives
from tests.crash_recorder.upgrade import DIRECTORIES, check_upgrade, contents, unpack
from tests.crash_states import Operation

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="needs a C compiler: .ci/prerequisites --compiler"
)

STATES = 100
STATES_OF_A_BREAKAGE = 60  # the first violation ends it
STATES_OF_AN_UPGRADE = 12
STATES_OF_A_LOSS = 12
HONEST = [Order(1, rounds=40), Order(2, rounds=40), Order(3, rounds=50, faults=0.2)]
BROKEN = [
    *(
        Order(1, rounds=20, cuts=0, breakage=f"no-{what}-sync")
        for what in ("rows", "index", "log", "directory", "session", "register", "witness")
    ),
    Order(11, rounds=20, cuts=0, faults=0.3, breakage="repeated-sync"),
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Operation], Path]:
    """All histories of this module, lived by one program; and the directory that it left."""
    directory = tmp_path_factory.mktemp("crash-states")
    root, log = directory / "root", directory / "log"
    root.mkdir()
    orders = json.dumps([asdict(order) for order in (*HONEST, *BROKEN)])
    run_recorded(["-m", "tests.crash_recorder.live", root, log, orders], root, log)
    return operations(log, root), root


def lived(recorded: list[Operation], orders: list[Order]) -> list[Lived]:
    names = tuple(order.name for order in orders)
    return [life for life in lives(recorded) if life.directory.rpartition("-")[0] in names]


def test_the_end_of_the_recording_is_what_the_shards_left(
    recording: tuple[list[Operation], Path], tmp_path: Path
) -> None:
    check_recording(*recording, tmp_path)


def test_every_acknowledged_write_is_there_whenever_the_power_fails(
    recording: tuple[list[Operation], Path], tmp_path: Path
) -> None:
    found = lived(recording[0], HONEST)
    assert len(found) == sum(order.cuts + 1 for order in HONEST)
    violations = list(check_lives(recording[0], found, tmp_path, 1, STATES))
    assert not violations, "\n".join(map(str, violations))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda order: order.breakage)
def test_a_missing_sync_or_a_repeated_one_is_noticed(
    recording: tuple[list[Operation], Path], tmp_path: Path, broken: Order
) -> None:
    found = lived(recording[0], [broken])
    assert next(check_lives(recording[0], found, tmp_path, 1, STATES_OF_A_BREAKAGE), None)


def test_a_directory_of_the_last_format_is_whole_whenever_the_power_fails_during_its_upgrade(
    tmp_path: Path,
) -> None:
    unpacked, root, scratch = (tmp_path / name for name in ("unpacked", "root", "scratch"))
    for directory in (unpacked, root, scratch):
        directory.mkdir()
    unpack(unpacked)
    log = tmp_path / "log"
    run_recorded(["-m", "tests.crash_recorder.upgrade", root, unpacked], root, log)
    recorded = operations(log, root)
    upgraded = lives(recorded)
    assert [life.directory for life in upgraded] == list(DIRECTORIES)
    for life in upgraded:
        expected = contents(unpacked / life.directory)
        assert expected.keys() == {"words", "points"}
        check = partial(check_upgrade, expected)
        share = STATES_OF_AN_UPGRADE // len(upgraded)
        violations = list(check_lives(recorded, [life], scratch, 1, share, check=check))
        assert not violations, "\n".join(map(str, violations))


def test_an_accepted_loss_is_accepted_or_can_be_accepted_again_whenever_the_power_fails(
    tmp_path: Path,
) -> None:
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    log, requested = tmp_path / "log", tmp_path / "request"
    run_recorded(["-m", "tests.crash_recorder.loss", root, requested], root, log)
    recorded = operations(log, root)
    check = partial(check_loss, pickle.loads(requested.read_bytes()))
    violations = list(
        check_lives(recorded, lives(recorded), scratch, 1, STATES_OF_A_LOSS, check=check)
    )
    assert not violations, "\n".join(map(str, violations))
