"""The command line, run in this process against a client in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from tests.cli.client_in_memory import ClientInMemory
from vectorshard.cli import app, asking

Run = Callable[..., Result]


@pytest.fixture
def client() -> ClientInMemory:
    """A client whose server knows nothing yet."""
    return ClientInMemory()


@pytest.fixture
def run(client: ClientInMemory, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against `client`, without a terminal and its width."""
    monkeypatch.delenv("COLUMNS", raising=False)  # a worker of pytest-xdist has one
    monkeypatch.setattr(asking, "connect", lambda target, timeout_s: client)
    return lambda *arguments: CliRunner().invoke(app.app, [str(part) for part in arguments])
