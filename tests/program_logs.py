"""The log settings of a process in which tests play a program that is not ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def default_logs() -> Iterator[None]:
    """Begin with structlog as it comes, and leave it as it was: capture_logs depends on it."""
    configured = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    try:
        yield
    finally:
        structlog.reset_defaults()
        if configured is not None:
            structlog.configure(**configured)
