"""The files of a disk layer: segments, appended to and never changed. Imports numpy, and kernels when used.

A segment is two files. `NAME.data` holds values one after the other; `NAME.keys` holds, after a head of the same size,
a record of 40 bytes a value: the key's first 24 bytes, offset | length << 40, and the entry's checksum (little-endian
uint64 each), which the key's last 8 bytes have a part in. Records are written after what they point to, so that what a
crash leaves is at most a hole in the data. Who may delete: a segment's `.keys` is under a shared `flock` of every
process that uses it, and its `.data` under an exclusive one of the process that appends to it; the kernel lifts both
when the process ends, however it ends. Files are read through maps: truncating one that is in use ends its users with
SIGBUS, as deleting it does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RECORD = 40
PLACE, SUM = 3, 4  # words of a record, behind the key's
HEAD = b"tokzip cache segment, format 2".ljust(RECORD, b"\n")
_NAME = re.compile("[0-9]{20}-[0-9a-f]{8}")


class Segment:
    """One segment as this process sees it: `records` (uint64 `[n, 5]`) and `data` (uint8) are maps of its files."""

    def __init__(self, folder: str, name: str, number: int) -> None:
        """Raises OSError where the files are not there (yet), and ValueError where they are none of ours."""
        self.name, self.number = name, number
        self.keys_path, self.data_path = (os.path.join(folder, name + end) for end in (".keys", ".data"))
        self.records: npt.NDArray[np.uint64] = np.empty((0, 5), np.uint64)
        self.data: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used: int | None = None
        with open(self.keys_path, "rb") as f:
            head = f.read(RECORD)
            if len(head) < RECORD:
                raise FileNotFoundError(f"{self.keys_path} is being made")
            if head != HEAD:
                raise ValueError(f"{self.keys_path} is not a segment of this format")

    def grow(self) -> int:
        """Map what has been appended since; returns the first new record. Raises OSError."""
        first = len(self.records)
        count = os.stat(self.keys_path).st_size // RECORD - 1
        if count > first:
            # The records first: what they point to was there before them.
            self.records = _map(self.keys_path)[RECORD : (count + 1) * RECORD].view(np.uint64).reshape(-1, 5)
            self.data = _map(self.data_path)
        return first

    def use(self, started: float) -> None:
        """Keep the segment from being deleted until `close`, and date it by the run that uses it."""
        if self._used is not None:
            return
        with contextlib.suppress(OSError), contextlib.ExitStack() as failed:
            handle = os.open(self.keys_path, os.O_RDONLY | os.O_CLOEXEC)
            failed.callback(os.close, handle)
            # Refused while another process sees whether to delete it: the maps stay good, and the next use asks again.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            failed.pop_all()
            self._used = handle
            os.utime(self.keys_path, (started, started))

    def close(self) -> None:
        if self._used is not None:
            os.close(self._used)
            self._used = None


class Writer:
    """Appends to one segment, under its lock and that of the folder."""

    def __init__(self, segment: Segment) -> None:
        """Raises OSError where another process appends to it, or died within a record."""
        self.segment = segment
        self._data = os.open(segment.data_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._data, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.getsize(segment.keys_path) % RECORD:
                raise OSError(f"{segment.keys_path} ends within a record")
        except OSError:
            os.close(self._data)
            raise

    def append(self, records: npt.NDArray[np.uint64], values: memoryview) -> None:
        """Write values, then their records, whose offsets count from the first value's. Raises OSError."""
        begin = os.fstat(self._data).st_size
        _write(self._data, values)
        records[:, PLACE] += np.uint64(begin)
        keys = os.open(self.segment.keys_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            _write(keys, records.data.cast("B"))
        finally:
            os.close(keys)

    def close(self) -> None:
        os.close(self._data)


def create(folder: str) -> str:
    """The name of a new, empty segment; names sort by age. Raises OSError."""
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    Path(folder, name + ".keys").write_bytes(HEAD)
    return name


def sizes(folder: str) -> dict[str, int]:
    """Bytes of both files of each segment of the folder, by name."""
    found: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            name, end = os.path.splitext(entry.name)
            if end in (".keys", ".data") and _NAME.fullmatch(name):
                with contextlib.suppress(FileNotFoundError):
                    found[name] = found.get(name, 0) + entry.stat().st_size
    return found


def delete_unused(folder: str, names: Iterable[str]) -> str | None:
    """Delete one segment: of those that no process uses or appends to, that used by the oldest run; None if none is.

    Of those of the same run, the one that was written last: a run that goes through its rows in the same order
    again needs that one last. Hold the folder's lock.
    """

    def age(name: str) -> tuple[float, int]:
        try:
            return os.stat(os.path.join(folder, name + ".keys")).st_mtime, 0
        except FileNotFoundError:  # the data of a segment that was being deleted
            return 0.0, 0

    for name in sorted(sorted(names, reverse=True), key=age):
        keys, data = (os.path.join(folder, name + end) for end in (".keys", ".data"))
        with contextlib.ExitStack() as held:
            if _locked(keys, held) and _locked(data, held):
                for path in (keys, data):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                return name
    return None


def _locked(path: str, held: contextlib.ExitStack) -> bool:
    """Lock a file that nobody else has locked, for as long as `held`; True also where there is no file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def folder_lock(folder: str, seconds: float) -> Iterator[None]:
    """The one lock under which files are appended to, made and deleted. Raises TimeoutError."""
    handle = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process has held the lock of {folder} for {seconds:g} s") from None
                time.sleep(0.002)
        yield
    finally:
        os.close(handle)


def _map(path: str) -> Any:
    return np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.empty(0, np.uint8)


def _write(handle: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(handle, data) :]
