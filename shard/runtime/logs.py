"""The log of a server: one line per event, on stderr, as JSON or as text.

stdout is reserved for the line with the server's address. Events that libraries log with the
standard library's logging have the same format.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, Processor


def configure_logs(log_format: Literal["json", "console"]) -> None:
    """Write every event of level INFO and above to stderr, as JSON or as text.

    Times are UTC, ISO 8601, under ``timestamp``; an exception's traceback is under ``exception``.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[Processor] = [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # rich prints locals, such as rows
        )
    ]
    if log_format == "json":
        renderer = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("faiss").setLevel(logging.WARNING)  # INFO: which build its loader chose
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )


def quiet_logs() -> None:
    """Send our events to the standard library's logging, in a program that is not ours.

    By default structlog would print them, and rows of tracebacks. Other events of a program stay as
    they are, and a program that has configured structlog keeps its way.
    """
    if not structlog.is_configured():
        structlog.configure(logger_factory=_logger_of, wrapper_class=_bound)  # type: ignore[arg-type]


def _logger_of(*names: str) -> Any:
    ours = names and names[0].startswith("vectorshard.")
    return logging.getLogger(names[0]) if ours else structlog.PrintLogger()


def _bound(logger: Any, processors: Any, context: Any) -> Any:
    if isinstance(logger, logging.Logger):
        processors = [_as_line]
    return _BOUND_BY_DEFAULT(logger, processors, context)


def _as_line(_logger: Any, _name: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Return what logging takes: a line, and the exception."""
    line, exc_info = event.pop("event"), event.pop("exc_info", None)
    fields = "".join(f" {name}={value}" for name, value in event.items())
    return (f"{line}{fields}",), {"exc_info": exc_info}


_BOUND_BY_DEFAULT: Final[Any] = structlog.make_filtering_bound_logger(0)
