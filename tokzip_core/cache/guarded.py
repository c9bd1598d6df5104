"""A layer that may fail, made one that is at worst slow or gone. Imports layer."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokzip_core.cache.layer import CacheLayer

_log = logging.getLogger("tokzip.cache")
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class AbsentLayer(CacheLayer):
    """In the place of a layer that cannot be opened: has nothing, and keeps nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.counters["failed"] = 1

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        return pa.nulls(len(keys), pa.binary())

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        pass

    def close(self) -> None:
        pass


class GuardedLayer(CacheLayer):
    """`layer`, each of whose calls ends within `seconds` and without an error.

    After a call that raises or takes longer, the layer is left alone, its keys misses, for a second, then for twice as
    long each time, up to a minute; and as long as a call is still hanging. Reads and writes are left alone apart, so
    that what can only be read is still read. A call that was given up ends by itself, in its thread. The first failure
    is logged as a warning, later ones are only counted (`failed`). What the layer holds back is flushed when the
    process ends.
    """

    def __init__(self, layer: CacheLayer, seconds: float = 30.0, pause: float = _FIRST_PAUSE) -> None:
        super().__init__()
        self.layer, self.name, self.seconds = layer, layer.name, seconds
        self.counters = layer.counters
        self._first_pause = pause
        self._pauses = {"read": _Pause(pause), "write": _Pause(pause)}
        self._idle: list[_Worker] = []
        self._hanging: list[_Worker] = []
        self._warned = False
        self._lock = threading.Lock()
        atexit.register(_flush, weakref.ref(self))

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        found = self._call("read", self.layer.get_many, keys)
        return pa.nulls(len(keys), pa.binary()) if found is None else found

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        self._call("write", self.layer.put_many, keys, values)

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:
        self._call("write", self.layer.discard_many, keys)

    def flush(self) -> None:
        self._call("write", self.layer.flush)

    def close(self) -> None:
        self._call("write", self.layer.close)

    def _call(self, kind: str, function: Callable[..., Any], *arguments: Any) -> Any:
        pause = self._pauses[kind]
        with self._lock:
            for worker in [w for w in self._hanging if not w.answers.empty()]:  # it has answered after all
                worker.answers.get()
                self._hanging.remove(worker)
                self._idle.append(worker)
            self._idle = [w for w in self._idle if w.is_alive()]  # threads do not survive a fork
            if self._hanging or time.monotonic() < pause.until:
                return None
            worker = self._idle.pop() if self._idle else _Worker(self.name)
        worker.jobs.put((function, arguments))
        hangs = False
        try:
            result, failure = worker.answers.get(timeout=self.seconds)
        except queue.Empty:
            hangs, result, failure = True, None, TimeoutError(f"no answer within {self.seconds:g} s")
        with self._lock:
            (self._hanging if hangs else self._idle).append(worker)
            if failure is None:
                pause.seconds = self._first_pause
                return result
            self._count(failed=1)
            pause.until = time.monotonic() + pause.seconds
            pause.seconds = min(pause.seconds * 2, _LONGEST_PAUSE)
            warn, self._warned = not self._warned, True
        if warn:
            _log.warning("cache layer %s fails, the job goes on without it for a while: %s", self.name, failure)
        return None


@dataclass
class _Pause:
    seconds: float  # how long the next one is
    until: float = 0.0


def _flush(layer: weakref.ref[GuardedLayer]) -> None:
    """What is still held back when the process ends."""
    if (found := layer()) is not None:
        with contextlib.suppress(RuntimeError):  # no thread can be started any more
            found.flush()


class _Worker(threading.Thread):
    """Does one job after the other. A daemon: a call that hangs must not keep the process from ending."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"tokzip cache {name}", daemon=True)
        self.jobs: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            function, arguments = self.jobs.get()
            try:
                answer: tuple[Any, Exception | None] = function(*arguments), None
            except Exception as error:
                answer = None, error
            del function, arguments
            self.answers.put(answer)
            del answer
