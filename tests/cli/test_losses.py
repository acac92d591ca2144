"""`vectorshard accept-loss`, and what the other commands show of lost disks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import typer

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run
from tests.shard.samples import config_of
from vectorshard.cli import asking, losses
from vectorshard.shard.errors import InvalidParameter, ShardUnavailable
from vectorshard.shard.membership import (
    AcceptedLoss,
    AcceptLossRequest,
    AcceptLossResult,
    Problem,
    ProblemKind,
)
from vectorshard.shard.types import IdType, Metric

KNOWN = AcceptedLoss(
    collection="words",
    incarnation="i",
    reason="shard 1: its directory is another",
    config=config_of(),
    accepted=10,
    witnessed_accepted=1_037,
)
UNKNOWN = replace(KNOWN, collection="names", accepted=0, witnessed_accepted=None)

Asked = list[tuple[str, AcceptLossRequest]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Answer the RPC, and keep what was asked."""
    asked: Asked = []

    async def ask(target: str, request: AcceptLossRequest, timeout_s: float) -> AcceptLossResult:
        asked.append((target, request))
        return AcceptLossResult(losses=(KNOWN, UNKNOWN), life=2)

    monkeypatch.setattr(losses, "_ask", ask)
    return asked


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], bool]) -> None:
    monkeypatch.setattr(asking, "on_a_terminal", lambda: True)

    def confirm(text: str, *, abort: bool, err: bool) -> bool:
        typer.echo(text, err=err)
        if not answer():
            raise typer.Abort
        return True

    monkeypatch.setattr(typer, "confirm", confirm)


def test_what_is_lost_is_shown_and_accepted_with_yes(run: Run, asked: Asked) -> None:
    result = run("accept-loss", "--shard-id", 1, "--target", "host:1", "--yes")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert lines["words"].split()[-3:] == ["10", "1,037", "1,027"]
    assert lines["names"].split()[-3:] == ["0", "unknown", "unknown"]
    assert "shard 1 goes on with what it has, in its life 2" in result.output
    assert asked == [
        ("host:1", AcceptLossRequest(shard=1)),
        ("host:1", AcceptLossRequest(shard=1, accept=True)),
    ]


def test_it_may_be_repeated(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(*_: object) -> AcceptLossResult:
        return AcceptLossResult(losses=(), life=2)

    monkeypatch.setattr(losses, "_ask", ask)
    result = run("accept-loss", "--shard-id", 1)
    assert (result.exit_code, result.output) == (0, "nothing is missing on shard 1\n")


def test_without_a_terminal_nothing_is_accepted_without_yes(run: Run, asked: Asked) -> None:
    result = run("accept-loss", "--shard-id", 1)
    assert result.exit_code == 1
    assert "what shard 1 has lost" in result.output
    assert "--yes is required" in result.output
    assert [request.accept for _, request in asked] == [False]


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_the_answer_decides(
    run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    on_a_terminal(monkeypatch, lambda: answer)
    result = run("accept-loss", "--shard-id", 1)
    assert (result.exit_code == 0) is answer
    assert [request.accept for _, request in asked] == [False, True][: 1 + answer]


def test_with_json_the_operator_sees_the_loss_before_the_question(
    run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch, lambda: True)
    result = run("accept-loss", "--shard-id", 1, "--json")
    assert result.stderr.index("1,027") < result.stderr.index("Accept the loss on shard 1?")
    [line] = result.stdout.splitlines()
    accepted = json.loads(line)
    assert (accepted["shard"], accepted["life"], len(accepted["losses"])) == (1, 2, 2)


@pytest.mark.parametrize(
    "error",
    [
        InvalidParameter("this is shard 0, not shard 1", field="shard"),
        ShardUnavailable("shard 1 does not answer: start it"),
    ],
)
def test_a_refusal_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(losses, "_ask", refuse)
    result = run("accept-loss", "--shard-id", 1, "--yes")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "shard 1" in result.output


def test_describe_shows_what_is_missing_and_the_problems(
    run: Run, client: ClientInMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection("w", dim=2, metric=Metric.L2, id_type=IdType.INT64)
    description = client.describe("w")
    missing = replace(
        description.shards[0],
        missing_reason="its disk is lost",
        writes_stopped="a disk failed",
        kept_files="w.damaged keeps files",
        rows_damaged=12,
        damaged_ids=tuple(range(12)),
    )
    described = replace(description, shards=(missing,))
    monkeypatch.setattr(ClientInMemory, "describe", lambda *_: described)
    output = run("describe", "w").output
    assert "shard 0 is missing: its disk is lost" in output
    assert "shard 0 takes no writes: a disk failed" in output
    assert "shard 0 keeps files: w.damaged keeps files" in output
    assert "MISSING" in output
    assert "12 damaged rows" in output
    assert "ids 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 others" in output
    client.problems = [Problem(shard=3, kind=ProblemKind.DISK_FULL, text="free some space")]
    output = run("describe").output
    assert "DISK_FULL" in output
    assert "free some space" in output
