"""The log of a server: one event a line, on stderr."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import structlog

from tests.program_logs import default_logs
from vectorshard.shard.runtime.logs import quiet_logs

PROGRAM = """
import logging, structlog
from vectorshard.shard.runtime.logs import configure_logs
log = structlog.get_logger('ours')
configure_logs({log_format!r})
logging.getLogger('library').warning('lost %s', 'it')
log.debug('unseen')
logging.getLogger('faiss.loader').info('unseen: which build was loaded')
secret = 'hid' + 'den'
try: 1 / 0
except ZeroDivisionError: log.exception('failed', shard=1)
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_log_goes_to_stderr_with_tracebacks_and_no_local_variables(log_format: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(log_format=log_format)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not ended.stdout
    assert "hidden" not in ended.stderr
    assert "unseen" not in ended.stderr
    assert "ZeroDivisionError" in ended.stderr
    if log_format == "json":
        library, ours = map(json.loads, ended.stderr.splitlines())
        assert (library["event"], library["logger"]) == ("lost it", "library")
        assert (ours["event"], ours["shard"], ours["level"]) == ("failed", 1, "error")
        assert ours["timestamp"].endswith("Z")


def test_in_a_program_that_is_not_ours_only_our_events_go_to_logging(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with default_logs():
        quiet_logs()
        structlog.get_logger("service").info("of the program")
        structlog.get_logger("vectorshard.shard").info("unseen")
        try:
            hidden = "hid" + "den"
            raise ValueError
        except ValueError:
            structlog.get_logger("vectorshard.shard").exception("failed at 5%", shard=len(hidden))
    assert [record.getMessage() for record in caplog.records] == ["failed at 5% shard=6"]
    assert "ValueError" in caplog.text
    assert "hidden" not in caplog.text
    assert "of the program" in (printed := capsys.readouterr().out)
    assert "failed" not in printed
