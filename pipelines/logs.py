"""What launcher and local workers log, as lines of text or of JSON. Imports nothing of ours.

A record may say what it is about: `logger.warning("%s: …", url, extra={"shard": url, "row": 7})`; and everything that
is logged within `about(…)`, in the same thread, is about that. The message names shard and row as well: remote workers'
records travel by Beam's own channel, which has room for the message alone.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

FIELDS = ("stage", "split", "shard", "row")
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_OURS = ("pipelines", "tokzip_core", "tokzip")
_TEXT = "%(levelname)s %(name)s: %(message)s"
_FORMAT, _LEVEL = "TOKZIP_LOG_FORMAT", "TOKZIP_LOG_LEVEL"  # how worker processes are told
_TOLD = os.environ.get(_FORMAT), os.environ.get(_LEVEL)  # not by an earlier command in this process
_about: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar("about", default=None)


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What is logged within is about these (of `FIELDS`)."""
    token = _about.set({**(_about.get() or {}), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """A JSON object a line: time (ISO 8601, UTC), level, logger, message; of `FIELDS` those that are known; and
    `exception`, a traceback, where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
            **{f: getattr(record, f) for f in FIELDS if hasattr(record, f)},
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _is_wanted(record: logging.LogRecord) -> bool:
    """Of other people's loggers (Beam lowers the root's level) warnings and worse; of ours what their level says."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] in _OURS


def configure(form: str | None = None, level: str | None = None) -> None:
    """Set up this process, and the worker processes that it will start.

    form: one of `FORMATS`, level: of ours, one of `LEVELS`; None: as the process that started this one was told, else
    text and warnings. What others than `logging.basicConfig` have set up is left alone.
    """
    form = form or (_TOLD[0] if _TOLD[0] in FORMATS else "text")
    level = level or (_TOLD[1] if _TOLD[1] in LEVELS else "warning")
    os.environ |= {_FORMAT: form, _LEVEL: level}
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(_TEXT))
            handler.addFilter(_is_wanted)
    for name in _OURS:
        logging.getLogger(name).setLevel(level.upper())


def note(text: str) -> None:
    """What a run has to say beside its summary: printed, and logged as INFO."""
    print(f"note: {text}")
    logging.getLogger("pipelines").info("note: %s", text)


def failed(command: str, error: object) -> None:
    """The one line by which a command says why it ends."""
    if os.environ.get(_FORMAT) == "json":
        logging.getLogger("pipelines").error("%s: error: %s", command, error)
    else:
        print(f"{command}: error: {error}", file=sys.stderr)
