"""What Beam prints, but for its pages of traceback about errors of ours and about connections that broke as the job
ended. Imports errors alone.

A command that fails ends with what is wrong, in one line. Each runner has its own ways of saying it before, in full:
by loggers of Beam, of Prism and the root one, and printed straight to the standard error. What a connection would have
brought is told by whoever waits for it: the launcher, of its job.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from typing import Any

from tokzip_core.errors import TokzipError

# As the last line of a traceback; in a log entry that was printed as text, line ends are escaped.
_KNOWN = re.compile(
    r"(?:^|\\n)(?:(?:pipelines|tokzip_core)\.[\w.]+Error|grpc\._channel\.\w+): "
    r"|^RuntimeError: cannot schedule new futures after",  # workers' threads may outlast the command
    re.MULTILINE,
)


def is_news(record: logging.LogRecord) -> bool:
    """A filter for logging: whether anybody wants to read this."""
    if record.name.startswith(("pipelines", "tokzip_core")):
        return True
    text = record.getMessage()
    if _KNOWN.search(text) or (record.exc_info and _is_known(record.exc_info[1])):
        return False
    if record.name == "PrismRunner":  # it tells of every failed bundle twice, first without the cause
        return record.levelno >= logging.WARNING and "bundle error" not in text
    return not text.startswith("Worker: severity: ")  # what a worker process has said already


def _is_known(error: BaseException | None) -> bool:
    return isinstance(error, TokzipError) or type(error).__module__.partition(".")[0] == "grpc"


class _Stderr:
    """A stream that leaves such tracebacks out; with the end of line that `print` writes after its text."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.dropped = stream, False

    def write(self, text: str) -> int:
        end, self.dropped = self.dropped and text == "\n", text.startswith("Traceback") and bool(_KNOWN.search(text))
        return len(text) if end or self.dropped else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if not _is_known(args.exc_value):
        threading.__excepthook__(args)


def quiet() -> None:
    """Let no thread of this process print or log such pages from now on: some do as the process ends."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_news)
    threading.excepthook = _thread_failed
    if not isinstance(sys.stderr, _Stderr):
        sys.stderr = _Stderr(sys.stderr)
