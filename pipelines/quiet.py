"""What Beam prints, but for its pages of traceback about errors of ours and about what broke as the job ended. Imports
nothing of ours.

A command that fails ends with what is wrong, in one line. Each runner has its own ways of saying it before, in full:
by loggers of Beam, of Prism and the root one, and printed straight to the standard error. What a connection would have
brought is told by whoever waits for it: the launcher, of its job.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from typing import Any

# As the last line of a traceback; in a log entry that was printed as text, line ends are escaped.
_KNOWN = re.compile(
    r"(?:^|\\n)(?:(?:pipelines|tokzip_core)\.[\w.]+Error|grpc\._channel\.\w+): "
    r"|^RuntimeError: cannot schedule new futures after",  # workers' threads may outlast the command
    re.MULTILINE,
)
_BEAM = ("apache_beam", "PrismRunner", "root")
_OF_PRISM = ("bundle error", "bundle inactive")  # of every failed bundle, beside the cause
_MOST_KEPT = 1000


class _Errors:
    """Beam's errors while a job runs, which is before it is known whose fault they are: a runner may go on with other
    steps of a job that has failed, and tell at length how they fail, before and after it tells of the first."""

    def __init__(self) -> None:
        self.are_news: bool | None = True  # None: it is not known yet
        self.kept: list[logging.LogRecord | str] = []

    def keep(self, said: logging.LogRecord | str) -> bool:
        """Whether this is not to be told now: perhaps it will be once the job has ended."""
        if self.are_news is None and len(self.kept) == _MOST_KEPT:
            return False
        if self.are_news is None and not (self.kept and self.kept[-1] is said):  # a record comes once a handler
            self.kept.append(said)
        return not self.are_news


_errors = _Errors()


def hold() -> None:
    """Keep Beam's errors from now on."""
    _errors.are_news = None


def release(are_news: bool) -> None:
    """Tell of the errors that were kept, and of further ones; or, where one of ours was the cause, of neither."""
    kept, _errors.kept, _errors.are_news = _errors.kept, [], are_news
    for said in kept if are_news else ():
        if isinstance(said, str):
            print(said, file=sys.stderr)
        else:
            logging.getLogger(said.name).handle(said)


def is_news(record: logging.LogRecord) -> bool:
    """A filter for logging: whether anybody wants to read this, and now."""
    if record.name.startswith(("pipelines", "tokzip_core")):
        return True
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + "".join(traceback.format_exception(*record.exc_info))
    if _KNOWN.search(text) or text.startswith("Worker: severity: "):  # what a worker process has said already
        return False
    if record.name == "PrismRunner" and (record.levelno < logging.WARNING or any(s in text for s in _OF_PRISM)):
        return False
    return not (record.levelno >= logging.ERROR and record.name.startswith(_BEAM) and _errors.keep(record))


class _Stderr:
    """A stream that leaves such tracebacks out; with the end of line that `print` writes after its text."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.dropped = stream, False

    def write(self, text: str) -> int:
        end = self.dropped and text == "\n"
        self.dropped = text.startswith("Traceback") and (bool(_KNOWN.search(text)) or _errors.keep(text))
        return len(text) if end or self.dropped else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    text = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
    if not (_KNOWN.search(text) or _errors.keep(text)):
        threading.__excepthook__(args)


def quiet() -> None:
    """Let no thread of this process print or log such pages from now on: some do as the process ends."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(is_news)
    threading.excepthook = _thread_failed
    if not isinstance(sys.stderr, _Stderr):
        sys.stderr = _Stderr(sys.stderr)
