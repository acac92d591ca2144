"""What the commands that ask a server have in common: their options, and the client.

The client is imported when a command runs, so that `--help` does not wait for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.types import IdArray, IdType

if TYPE_CHECKING:
    from vectorshard.client.client import Client

Name = Annotated[str, typer.Argument(metavar="COLLECTION", help="Name of the collection.")]
Collection = Annotated[str, typer.Option(help="Name of the collection.")]
Target = Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the server.")]
Timeout = Annotated[float, typer.Option(min=0.001, metavar="SECONDS", help="Timeout of each call.")]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter",
        metavar="CONDITION",
        help="Only rows that pass, such as 'lang = \"en\" and (year >= 1990 or tag exists)'.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def connect(target: str, timeout_s: float) -> Client:
    """Return a client of the server at `target`."""
    from vectorshard.client.client import Client

    return Client(target, timeout_s=timeout_s)


def require_agreement(yes: bool, question: Callable[[], str]) -> None:
    """Ask the operator, unless `yes`; typer.Abort if the answer is no.

    The question is on stderr, because stdout may be JSON. Raises InvalidParameter without a
    terminal to ask on.
    """
    if yes:
        return
    if not on_a_terminal():
        raise InvalidParameter("without a terminal to ask on, --yes is required", field="yes")
    typer.confirm(question(), abort=True, err=True)


def on_a_terminal() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin.isatty()


def parse_ids(texts: Sequence[str], id_type: IdType) -> IdArray:
    """Return ids (rows,) of the collection's type from their texts."""
    if id_type is IdType.STRING:
        ids = np.empty(len(texts), dtype=object)
        ids[:] = texts
        return ids
    return np.array([_int64(text) for text in texts], dtype=np.int64)


def _int64(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 2**63
    if not -(2**63) <= number < 2**63:
        raise typer.BadParameter(f"{text!r} is not an int64, as this collection's ids are")
    return number
