"""The command line as a whole: what it lists, what it loads, how a failure is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.testing import CliRunner

from tests.cli.client_in_memory import ClientInMemory
from tests.cli.conftest import Run
from vectorshard.cli import app
from vectorshard.shard import errors


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, and these variables on top of ours."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["serve", "ingest", "search", "explain", "describe", "demo"])
def test_help_shows_every_word_of_every_option(command: str) -> None:
    """Rich takes words in brackets for a style and leaves them out."""
    told = CliRunner().invoke(app.app, [command, "--help"], env={"COLUMNS": "300"}).stdout
    group = typer.main.get_command(app.app)
    assert isinstance(group, TyperGroup)
    texts = [
        parameter.help
        for parameter in group.commands[command].params
        if isinstance(parameter, TyperOption | TyperArgument) and parameter.name != "help"
    ]
    assert texts
    assert not [text for text in texts if not text or text not in told]


@pytest.mark.parametrize("optimized", [["-O"], ["-OO"], []])
def test_optimized_python_is_refused_before_anything_else(optimized: list[str]) -> None:
    environment = {} if optimized else {"PYTHONOPTIMIZE": "1"}
    ended = python(*optimized, "-m", "vectorshard.cli", "--version", **environment)
    assert ended.returncode == 2
    assert "python -O" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not ended.stdout


def test_threads_are_limited_before_numpy_is_loaded_and_a_wish_of_the_caller_wins() -> None:
    program = (
        "import os, sys\n"
        "del os.environ['OMP_NUM_THREADS']\n"
        "import vectorshard.cli.__main__ as start\n"
        "assert 'numpy' not in sys.modules\n"
        "start.set_environment()\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'], os.environ['OMP_NUM_THREADS'])\n"
    )
    ended = python("-c", program, OPENBLAS_NUM_THREADS="3", OMP_NUM_THREADS="9")
    assert ended.stdout.splitlines() == ["3 1"]


def test_the_version_is_one_line() -> None:
    ended = python("-m", "vectorshard.cli", "--version")
    assert re.fullmatch(r"vectorshard \d+\.\d+\.\d+\n", ended.stdout)


def test_ctrl_c_while_modules_are_loaded_prints_no_traceback() -> None:
    program = (
        "import sys\n"
        "import vectorshard.cli.__main__ as start\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'vectorshard.cli.app':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.argv = ['vectorshard', 'count', 'words']\n"
        "start.main()\n"
    )
    ended = python("-c", program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_the_commands_are_those_that_are_documented() -> None:
    commands = {
        command.callback.__name__ for command in app.app.registered_commands if command.callback
    }
    documented = {"demo", "serve", "shard", "router", "ingest", "search", "explain", "describe"}
    documented |= {"create", "drop", "train", "get", "count", "delete", "list_"}
    documented |= {"update", "recall", "accept_loss", "repair", "restore", "verify", "export"}
    assert commands == documented


def test_an_unknown_collection_is_one_line_with_what_to_do(run: Run) -> None:
    ended = run("describe", "absent")
    assert ended.exit_code == 1
    assert ended.stderr.splitlines() == [
        "error: collection 'absent' does not exist - `vectorshard describe` lists the collections"
    ]


@pytest.mark.parametrize(
    "error",
    [
        errors.CollectionExists("x"),
        errors.DimensionMismatch("x", field="dim"),
        errors.mark_unanswered(errors.ShardUnavailable("no server answers at x")),
        errors.DeadlineExceeded("x"),
        errors.Overloaded("x"),
        errors.WritesStopped("x"),
        errors.RowFileCorrupt("x"),
        errors.InternalError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_that_a_person_can_mend_says_how(error: errors.VectorShardError) -> None:
    assert app.advice_for(error)


def test_a_reader_that_has_enough_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(ClientInMemory, "list_collections", end)
    ended = run("describe")
    assert (ended.exit_code, ended.output) == (141, "")


def test_no_one_is_asked_whether_a_server_runs_that_has_answered() -> None:
    refused = "no server answers at 127.0.0.1:7702"
    assert app.advice_for(errors.mark_unanswered(errors.ShardUnavailable(refused)))
    assert not app.advice_for(errors.ShardUnavailable(f"coverage 0.5; missing: shard 1: {refused}"))
    other = errors.ShardUnavailable("127.0.0.1:80 does not speak gRPC: it is another port")
    assert not app.advice_for(errors.mark_unanswered(other))
    assert not app.advice_for(errors.ShardUnavailable("coverage 0.5; missing: shard 1"))


def commands() -> dict[str, TyperCommand]:
    """Return all commands by name, those of `backup` included."""
    group = typer.main.get_command(app.app)
    assert isinstance(group, TyperGroup)
    found: dict[str, TyperCommand] = {}
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            found |= {f"{name} {sub}": each for sub, each in command.commands.items()}  # type: ignore[misc]
        found[name] = command  # type: ignore[assignment]
    return found


def test_every_command_that_ends_prints_json_on_request() -> None:
    serving = ["serve", "shard", "router"]
    options = {
        name: {text for each in command.params for text in each.opts}
        for name, command in commands().items()
    }
    assert [name for name in options if "--json" not in options[name]] == serving


@pytest.mark.parametrize("kind", [errors.CollectionDamaged, errors.CollectionUnreadable])
def test_a_shard_says_itself_what_to_do_about_a_collection_that_it_has_set_aside(
    kind: type[errors.VectorShardError],
) -> None:
    assert not app.advice_for(kind("Keep these files, put back an intact copy."))
