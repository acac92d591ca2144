"""The commands that serve: what they pass on, and how one that cannot start says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from vectorshard.cli import embedded, routing
from vectorshard.cli.exit_codes import MEANINGS, ExitCode
from vectorshard.shard import errors
from vectorshard.shard.config import ScrubConfig, ServerConfig
from vectorshard.shard.runtime import logs


@pytest.mark.parametrize(
    ("failure", "text", "code"),
    [
        (errors.DataDirectoryLocked("rows are in use\nby 7"), "rows are in use by 7", 11),
        (errors.CannotListen("in use", field="listen"), "listen: in use", 10),
        (errors.DataDirectoryTooNew("of version 9"), "of version 9", 12),
        (errors.DataDirectoryForeign("of shard 7"), "of shard 7", 13),
        (errors.DataDirectoryError("shard.json: no object"), "shard.json: no object", 14),
        (errors.DataDirectoryFull("no room"), "no room", 15),
        (errors.DataDirectoryUnusable("/rows: Read-only"), "/rows: Read-only", 16),
        (errors.LimitsTooLow("64 files"), "64 files", 17),
        (errors.PlacementMismatch("1 of 3"), "1 of 3", 18),
        (OSError(28, "No space left"), "No space left", 1),
        (FileNotFoundError(2, "No such file", "/rows"), "/rows: No such file", 1),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line_and_its_code(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failure: Exception,
    text: str,
    code: int,
) -> None:
    async def serve(**_settings: object) -> None:
        raise failure

    monkeypatch.setattr(embedded, "serve", serve)
    monkeypatch.setattr(logs, "configure_logs", lambda log_format: None)
    ended = run("serve", "--data", tmp_path)
    assert ended.exit_code == code
    assert not ended.stdout
    assert ended.stderr == f"error: {text}\n"


def test_damage_has_an_exit_code_and_advice(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def serve(**_settings: object) -> None:
        raise errors.RowStoreCorrupt("store.db is missing")

    monkeypatch.setattr(embedded, "serve", serve)
    monkeypatch.setattr(logs, "configure_logs", lambda log_format: None)
    ended = run("serve", "--data", tmp_path)
    assert ended.exit_code == 14
    assert ended.stderr.startswith("error: store.db is missing - see `vectorshard repair`")


@pytest.mark.parametrize("command", ["serve", "shard", "router"])
def test_help_lists_the_exit_codes(run: Run, command: str) -> None:
    printed = run(command, "--help").stdout
    for code in ExitCode:
        assert f" {code}  {MEANINGS[code]}" in printed


def test_serve_passes_on_what_it_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: dict[str, object] = {}

    async def serve(**settings: object) -> None:
        told.update(settings)

    monkeypatch.setattr(embedded, "serve", serve)
    monkeypatch.setattr(logs, "configure_logs", lambda log_format: told.update(log=log_format))
    options = ["--shards", 3, "--listen", "127.0.0.1:0", "--log-format", "json"]
    options += ["--health", "127.0.0.1:1", "--lame-duck", 2, "--connection-age", 60]
    options += ["--reserve-mb", 7, "--scrub-interval", 60, "--scrub-mb", 5]
    assert run("serve", "--data", tmp_path, *options).exit_code == 0
    assert told == {
        "shards": 3,
        "data": tmp_path,
        "server": ServerConfig(
            listen="127.0.0.1:0", health="127.0.0.1:1", lame_duck_s=2.0, connection_age_s=60.0
        ),
        "reserve_mb": 7,
        "scrub": ScrubConfig(interval_s=60.0, bytes_per_s=5e6),
        "log": "json",
    }


@pytest.fixture
def told_to_route(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a router would have been started with."""
    told: dict[str, Any] = {}

    async def serve_router(**settings: object) -> None:
        told.update(settings)

    monkeypatch.setattr(routing, "serve_router", serve_router)
    monkeypatch.setattr(logs, "configure_logs", lambda log_format: None)
    return told


def test_router_is_told_addresses_or_how_they_are_made(
    run: Run, told_to_route: dict[str, Any]
) -> None:
    assert run("router", "--shard", "a:1", "--shard", "b:1").exit_code == 0
    assert told_to_route["shards"] == ("a:1", "b:1")
    by_number = ["--shard", "dns:///shard-{shard}.fleet:7700", "--shards", 2]
    assert run("router", *by_number, "--connection-age", 7.5).exit_code == 0
    assert told_to_route["shards"] == ("shard-0.fleet:7700", "shard-1.fleet:7700")
    assert told_to_route["server"].connection_age_s == 7.5


def test_router_says_what_it_cannot_make_addresses_of(
    run: Run, told_to_route: dict[str, Any]
) -> None:
    ended = run("router", "--shard", "dns:///shard-{shard}.fleet:7700")
    assert ended.exit_code == 1
    assert "requires --shards" in ended.stderr
    assert not told_to_route
