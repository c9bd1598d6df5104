"""What Beam prints, but for its pages of traceback about errors of ours. Imports errors alone.

A command that fails ends with what is wrong, in one line. Each runner has its own ways of saying it before, in full:
by loggers of Beam, of Prism and the root one, and printed straight to the standard error.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tokzip_core.errors import TokzipError

# As the last line of a traceback; in a log entry that was printed as text, line ends are escaped.
_OURS = re.compile(r"(?:^|\\n)(?:pipelines|tokzip_core)\.[\w.]+Error: ", re.MULTILINE)


def is_news(record: logging.LogRecord) -> bool:
    """A filter for logging: whether anybody wants to read this."""
    if record.name.startswith(("pipelines", "tokzip_core")):
        return True
    text = record.getMessage()
    if _OURS.search(text) or (record.exc_info and isinstance(record.exc_info[1], TokzipError)):
        return False
    if record.name == "PrismRunner":  # it tells of every failed bundle twice, first without the cause
        return record.levelno >= logging.WARNING and "bundle error" not in text
    return not text.startswith("Worker: severity: ")  # what a worker process has said already


class _Stderr:
    """A stream that leaves such tracebacks out; with the end of line that `print` writes after its text."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.dropped = stream, False

    def write(self, text: str) -> int:
        end, self.dropped = self.dropped and text == "\n", text.startswith("Traceback") and bool(_OURS.search(text))
        return len(text) if end or self.dropped else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """Not of a broken connection: whoever waits for what it would bring says so."""
    if type(args.exc_value).__module__.partition(".")[0] != "grpc":
        threading.__excepthook__(args)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let no thread of this process print or log such pages; what is logged stays so afterwards."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_news)
    hook, threading.excepthook = threading.excepthook, _thread_failed
    try:
        with contextlib.redirect_stderr(_Stderr(sys.stderr)):  # type: ignore[type-var]
            yield
    finally:
        threading.excepthook = hook
