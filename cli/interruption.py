"""Ctrl-C in a command that takes long: one line that says what is done, and how to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def told_when_interrupted(state: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, print `state` on stderr and go on with the interruption.

    `state` is a sentence without its end, such as "nothing was written; repeat the command".
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped: {state()}", err=True)
        raise
