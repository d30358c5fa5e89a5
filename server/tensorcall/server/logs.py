"""What the server's log looks like. Nothing here happens at import: a program of one's own configures its own logging.

Modules log by the standard library (`logging.getLogger(__name__)`, fields in `extra`); structlog writes the records.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.types import Processor

Format = Literal["console", "json"]

# All of our loggers are below it. Others, such as the served modules' own, are not ours to configure.
_ROOT = "tensorcall"


def configure(level: str = "info", format: Format = "console", stream: TextIO | None = None) -> None:
    """Writes the log of tensorcall, and of nothing else, to stderr. May be called again, which replaces the settings.

    Args:
        level: the least severe level that is written: "debug", with a line for every call, "info", "warning", "error".
        format: "console" for lines of key=value, with colours on a terminal; "json" for one JSON object a line.
        stream: where to instead of stderr.

    Raises:
        ValueError: there is no such level or format.
    """
    if stream is None:
        stream = sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(format, stream)],
        )
    )
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level.upper())
    # What a program had attached before would write every line twice.
    logger.handlers[:] = [handler]
    logger.propagate = False


def _renderers(format: Format, stream: TextIO) -> list[Processor]:
    if format == "json":
        # What JSON has no form for is written as its repr.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    if format == "console":
        # Not rich's tracebacks, structlog's default where rich is installed: they print local variables, which may be
        # what callers sent.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    raise ValueError(f"{format!r} is no format of logs: use 'console' or 'json'")
