"""The command line `vectorshard`: its commands, its version, and its one-line errors.

An expected failure is one line that says what to do next, never a traceback. The commands
themselves are in the modules beside this one; they import the client and the servers when they
run, so that `--help` does not wait for them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

import vectorshard
from vectorshard.backup.failures import BackupDamaged
from vectorshard.cli import (
    backups,
    collections,
    export,
    ingest,
    losses,
    recall,
    repair,
    restore,
    rows,
    searches,
    serve,
)
from vectorshard.cli.exit_codes import exit_code, explained
from vectorshard.cli.vector_files import UnreadableFile
from vectorshard.shard import errors

IS_IT_RUNNING: Final = "is the server running?"
"""The advice where no server has answered."""

NO_SERVER: Final = "no server answers"
"""What the text of a refused connection contains."""

ADVICE: Final[Mapping[type[errors.VectorShardError], str]] = {
    errors.CollectionNotFound: "`vectorshard describe` lists the collections",
    errors.CollectionExists: "choose another name, or the settings that the collection has",
    errors.DimensionMismatch: "`vectorshard describe` lists the dim of each collection",
    errors.ShardUnavailable: IS_IT_RUNNING,
    errors.ShardMissing: "docs/operations.md says what to do about a lost disk",
    errors.WritesLost: "the rows that the token names are lost: write them again",
    errors.ReadFailed: "check the shard's disk, then restart the shard",
    errors.DeadlineExceeded: "try again with a longer --timeout",
    errors.Overloaded: "try again later, or with a smaller --batch",
    errors.WritesStopped: "check the server's disk, then restart the server",
    errors.CollectionDamaged: "",  # the shard's text says it
    errors.CollectionUnreadable: "",
    errors.DiskFailed: "",
    errors.CorruptData: "see `vectorshard repair`, or restore the data directory from a backup",
    BackupDamaged: "`vectorshard verify` lists what is damaged; an earlier backup may be whole; "
    "`vectorshard backup --full` copies everything again",
    errors.InternalError: "see the server's log",
}
"""What to do about errors whose text does not say it; the nearest class counts. Empty: it does."""

CHECKOUT = Path(vectorshard.__file__).resolve().parent.parent
"""The root of the checkout, if this runs from one."""


def advice_for(error: Exception) -> str:
    """Return what to do about `error`; empty when there is no advice."""
    found = next((ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE), "")
    if found != IS_IT_RUNNING:
        return found
    # A server that answered names what is missing, and a port of another service is named as such.
    unanswered = isinstance(error, errors.VectorShardError) and error.unanswered
    return found if unanswered and NO_SERVER in str(error) else ""


def text_of(error: Exception) -> str:
    """Return the text of an error, without the number that an OSError's begins with."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


@contextmanager
def one_line_errors(code_of: Callable[[Exception], int] = lambda _: 1) -> Iterator[None]:
    """Turn an expected failure into one line on stderr, and an exit code by its cause."""
    try:
        yield
    except BrokenPipeError:  # whatever reads stdout has what it wanted, such as head
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except (errors.VectorShardError, UnreadableFile, OSError) as error:
        text = " ".join(text_of(error).split()) or type(error).__name__
        advice = advice_for(error)
        typer.echo(f"error: {text}" + (f" - {advice}" if advice else ""), err=True)
        raise typer.Exit(code_of(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _without_types(params: list[Any]) -> list[Any]:
    """Return parameters whose flags have no type in the help: ``--exact <bool>`` reads as if
    ``--exact true`` were right.
    """
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class PlainCommand(TyperCommand):
    """A command whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as the help shows them."""
        return _without_types(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """A group of commands whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, as the help shows them."""
        return _without_types(super().get_params(ctx))


class PlainTyper(typer.Typer):
    """A program of plain commands."""

    def command(self, *arguments: Any, **options: Any) -> Any:
        """Return what registers a function as a plain command."""
        return super().command(*arguments, cls=PlainCommand, **options)


class Commands(PlainGroup):
    """The registered commands, and `bench`, which only a checkout has."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return [*super().list_commands(ctx), "bench"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, None if it does not exist."""
        if cmd_name != "bench":
            return super().get_command(ctx, cmd_name)
        alone = PlainTyper(add_completion=False, pretty_exceptions_enable=False)
        anything = {"ignore_unknown_options": True}  # of the command that a checkout has
        command = bench_command()
        settings = anything if command is _bench_needs_a_checkout else {}
        alone.command(cmd_name, context_settings=settings)(one_line_errors()(command))
        return typer.main.get_command(alone)


def bench_command() -> Callable[..., None]:
    """Return the load generator, which is part of a checkout and not of the wheel."""
    if not (CHECKOUT / "benchmarks" / "load" / "command.py").is_file():
        return _bench_needs_a_checkout
    sys.path.insert(0, str(CHECKOUT))  # before a folder `benchmarks` of the caller
    command: Callable[..., None] = import_module("benchmarks.load.command").bench
    return command


def _bench_needs_a_checkout(
    options: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
) -> None:
    """Load a server and measure it; needs a checkout of vectorshard."""
    raise errors.InvalidParameter(
        "this command needs a checkout of vectorshard, with the extra `bench` installed",
        field="bench",
    )


app = PlainTyper(
    name="vectorshard",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A distributed vector search service over gRPC.",
)
for _command in serve.COMMANDS:
    app.command(epilog=explained())(one_line_errors(exit_code)(_command))
for _repair in repair.COMMANDS:
    app.command(epilog=repair.explained())(one_line_errors(exit_code)(_repair))
_OTHERS = (
    *collections.COMMANDS,
    *ingest.COMMANDS,
    *rows.COMMANDS,
    *searches.COMMANDS,
    *recall.COMMANDS,
    *losses.COMMANDS,
    export.export,
)
for _other in _OTHERS:
    _name = _other.__name__.strip("_").replace("_", "-")
    app.command(_name)(one_line_errors()(_other))
app.command("import", help="The same as `ingest`.")(one_line_errors()(ingest.ingest))
for _restore in restore.COMMANDS:
    app.command(epilog=restore.explained())(one_line_errors(restore.exit_code)(_restore))

_backups = PlainTyper(cls=PlainGroup, help=backups.backup.__doc__, epilog=backups.explained())
_backups.callback(invoke_without_command=True, epilog=backups.explained())(
    one_line_errors(backups.exit_code)(backups.backup)
)
for _name, _other in backups.COMMANDS.items():
    _backups.command(_name)(one_line_errors(backups.exit_code)(_other))
app.add_typer(_backups, name="backup")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vectorshard {vectorshard.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A distributed vector search service over gRPC."""
