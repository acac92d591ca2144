"""A shard keeps what it acknowledged, whenever the power fails: by the system calls that it makes.

Histories are lived by a real shard with its threads, in a program under the recorder of
`tests/crash_recorder`; some of their crash states are opened here. `make test-long` draws 20,000.
"""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.crash_recorder.live import Order
from tests.crash_recorder.loss import check_loss
from tests.crash_recorder.recorder import check_recording, compiler, operations, run_recorded
from tests.crash_recorder.states import Lived, check_lives, lives
from tests.crash_recorder.upgrade import DIRECTORIES, check_upgrade, contents, unpack
from tests.crash_states import Operation
from vectorshard.shard.membership import AcceptLossRequest

pytestmark = pytest.mark.skipif(
    compiler() is None, reason="needs a C compiler: .ci/prerequisites --compiler"
)

STATES = 100
STATES_OF_A_BREAKAGE = 60  # the first violation ends it
STATES_OF_AN_UPGRADE = 12
STATES_OF_A_LOSS = 12
HONEST = [Order(1, rounds=40), Order(2, rounds=40), Order(3, rounds=50, faults=0.2)]
BROKEN = [
    Order(1, rounds=20, cuts=0, breakage="no-rows-sync"),
    Order(1, rounds=20, cuts=0, breakage="no-log-sync"),  # which is SQLite's own
    Order(11, rounds=20, cuts=0, faults=0.3, breakage="repeated-sync"),
]


PROGRAM = """
import sys
from pathlib import Path
from tests.crash_recorder.live import live_all
from tests.crash_recorder.loss import lose_and_accept
from tests.crash_recorder.upgrade import upgrade_all
root, log, orders, unpacked, request = sys.argv[1:]
live_all(root, log, orders)
upgrade_all(Path(root), Path(unpacked))
lose_and_accept(Path(root), Path(request))
"""


@dataclass(frozen=True)
class Recording:
    """All that one program did, below `root`, and what else the checks of it need."""

    operations: list[Operation]
    root: Path
    unpacked: Path
    request: AcceptLossRequest

    def lives(self, *names: str) -> list[Lived]:
        """Return the lives in directories of these names, or with a number behind them."""
        found = lives(self.operations)
        return [life for life in found if re.sub(r"-\d$", "", life.directory) in names]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The histories of this module, an upgrade and an accepted loss, done by one program."""
    directory = tmp_path_factory.mktemp("crash-states")
    root, unpacked, log, request = (directory / name for name in ("root", "old", "log", "request"))
    root.mkdir()
    unpacked.mkdir()
    unpack(unpacked)
    orders = json.dumps([asdict(order) for order in (*HONEST, *BROKEN)])
    run_recorded(["-c", PROGRAM, root, log, orders, unpacked, request], root, log)
    return Recording(operations(log, root), root, unpacked, pickle.loads(request.read_bytes()))


def test_the_end_of_the_recording_is_what_the_shards_left(
    recording: Recording, tmp_path: Path
) -> None:
    check_recording(recording.operations, recording.root, tmp_path)


def test_every_acknowledged_write_is_there_whenever_the_power_fails(
    recording: Recording, tmp_path: Path
) -> None:
    found = recording.lives(*(order.name for order in HONEST))
    assert len(found) == sum(order.cuts + 1 for order in HONEST)
    violations = list(check_lives(recording.operations, found, tmp_path, 1, STATES))
    assert not violations, "\n".join(map(str, violations))


@pytest.mark.parametrize("broken", BROKEN, ids=lambda order: order.breakage)
def test_a_missing_sync_or_a_repeated_one_is_noticed(
    recording: Recording, tmp_path: Path, broken: Order
) -> None:
    found = recording.lives(broken.name)
    assert next(check_lives(recording.operations, found, tmp_path, 1, STATES_OF_A_BREAKAGE), None)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_of_the_last_format_is_whole_whenever_the_power_fails_during_its_upgrade(
    recording: Recording, tmp_path: Path, name: str
) -> None:
    expected = contents(recording.unpacked / name)
    assert expected.keys() == {"words", "points"}
    check = partial(check_upgrade, expected)
    states = STATES_OF_AN_UPGRADE // len(DIRECTORIES)
    found = check_lives(
        recording.operations, recording.lives(name), tmp_path, 1, states, check=check
    )
    violations = list(found)
    assert not violations, "\n".join(map(str, violations))


def test_an_accepted_loss_is_accepted_or_can_be_accepted_again_whenever_the_power_fails(
    recording: Recording, tmp_path: Path
) -> None:
    check = partial(check_loss, recording.request)
    lost = recording.lives("loss")
    violations = list(
        check_lives(recording.operations, lost, tmp_path, 1, STATES_OF_A_LOSS, check=check)
    )
    assert not violations, "\n".join(map(str, violations))
