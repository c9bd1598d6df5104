"""Errors of a store that pass, and trying again with back-off. Imports nothing of ours but the base of errors."""

from __future__ import annotations

import errno
import functools
import io
import logging
import random
import socket
import time
from collections.abc import Callable
from http.client import IncompleteRead
from typing import IO, Any, TypeVar

from tokzip_core.errors import TokzipError

F = TypeVar("F", bound=Callable[..., Any])

TRIES = 6
FIRST_DELAY = 0.2  # seconds; twice as long each time, up to half of it more by chance: 6 to 9 s in all

_ERRNOS = (
    *("EIO", "EAGAIN", "EBUSY", "EINTR", "ESTALE", "EPIPE", "EREMOTEIO", "ETIMEDOUT", "ECONNRESET", "ECONNREFUSED"),
    *("ECONNABORTED", "ENETDOWN", "ENETRESET", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
)
_PASSING_ERRNOS = {getattr(errno, name) for name in _ERRNOS if hasattr(errno, name)}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
# Clients' own exceptions, by name: they are no dependencies of ours (aiohttp, botocore, urllib3, requests, httpx).
_PASSING_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "HTTPClientError",
    "ResponseStreamingError",
    "IncompleteReadError",
    "ProtocolError",
    "ReadTimeoutError",
    "ConnectTimeoutError",
    "ChunkedEncodingError",
    "TransportError",
}
_PASSING_CODES = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestTimeout",
    "InternalError",
    "RequestLimitExceeded",
}


class StorageError(TokzipError):
    """A store failed each time that something was asked of it."""


class FileChangedError(TokzipError):
    """A file is no longer the one that was opened: what was read of it and what would be are of different ones."""


def is_transient(error: BaseException | None) -> bool:
    """Whether the same call may succeed a little later: time-outs, lost connections, throttling, 5xx.

    Not: a file that is missing, what is forbidden, a full disk.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError)):
            return False
        if _passes(error):
            return True
        error = error.__cause__
    return False


def _passes(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, IncompleteRead)):
        return True
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return True
    if {c.__name__ for c in type(error).__mro__} & _PASSING_NAMES:
        return True
    response = getattr(error, "response", None)
    found = [getattr(e, n, None) for e in (error, response) for n in ("status", "status_code", "code")]
    if isinstance(response, dict):  # botocore's
        found += [response.get("ResponseMetadata", {}).get("HTTPStatusCode"), response.get("Error", {}).get("Code")]
    return any(str(x) in _PASSING_CODES or str(x) in map(str, _PASSING_STATUS) for x in found if x is not None)


def retry(call: Callable[..., Any], *args: Any, what: str = "", **kwargs: Any) -> Any:
    """`call(*args, **kwargs)`, tried again while its error is transient.

    Raises `StorageError`, naming `what` (a URL; default: the first argument), after the last try; any other error
    at once.
    """
    for tries in range(1, TRIES + 1):
        try:
            return call(*args, **kwargs)
        except Exception as e:
            if not is_transient(e):
                raise
            name, why = what or args[0], f"{type(e).__name__}: {e}"
            if tries == TRIES:
                raise StorageError(f"{name}: the store failed {TRIES} times, last with {why}") from e
            logging.getLogger(__name__).info("%s: %s; try %d of %d", name, why, tries + 1, TRIES)
            time.sleep(FIRST_DELAY * 2 ** (tries - 1) * random.uniform(1, 1.5))


def retried(function: F) -> F:
    """A function of a URL that may be called again after an error in its middle, as one that `retry` calls."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return retry(function, *args, **kwargs)

    return call  # type: ignore[return-value]


class RetryingFile(io.RawIOBase):
    """A seekable file opened for reading, opened again and read from the same place where a read fails.

    open_file: gives the file and its version (anything that compares); True asks for it again. Reads raise
    `FileChangedError` where the file has another version then.
    """

    def __init__(self, url: str, open_file: Callable[[bool], tuple[IO[bytes], Any]]) -> None:
        super().__init__()
        self.url, self._open = url, open_file
        self._file: IO[bytes] | None
        self._file, self._version = retry(open_file, False, what=url)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = int(retry(self._now, lambda f: f.seek(offset, whence), what=self.url))
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = retry(self._now, lambda f: f.read(-1 if size is None else size), what=self.url)
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _now(self, do: Callable[[IO[bytes]], Any]) -> Any:
        if self._file is None:
            self._file, version = self._open(True)
            if version != self._version:
                self._drop()
                raise FileChangedError(f"{self.url}: has changed while it was read")
            self._file.seek(self._at)
        try:
            return do(self._file)
        except Exception:
            self._drop()
            raise

    def _drop(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                file.close()
        except OSError:
            pass  # it has failed already, and is not used again

    def close(self) -> None:
        self._drop()
        super().close()
