"""The log of a server: one event a line, on stderr."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
