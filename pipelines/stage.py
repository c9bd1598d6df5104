"""What a stage is: a generator over record batches that knows nothing of Beam, files or retries. Imports pyarrow only.

A block is a `pyarrow.RecordBatch` whose last two columns are `_row` (int64: the row's number within its shard)
and `_error` (string: null for a good row, else why the row is bad). A stage yields exactly one row for every row
it is given, in the same order, with both columns passed on: it may set `_error` on a row, and never clears it.
Whoever drives the stage writes the rows with an error to the dead letters and the others, without the two columns,
to the output, so "rows in = rows out + dead letters" holds by construction.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa

ROW = "_row"
ERROR = "_error"
T = TypeVar("T")

BOOKKEEPING = pa.schema([pa.field(ROW, pa.int64(), nullable=False), pa.field(ERROR, pa.string())])


class Stats(dict[str, float]):
    """Sums of one split: counts (`tokens`, `cache_hits.memory`, …) and seconds (`seconds.<part>`); and single values
    `observed`, as (name, value), for Beam's distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[tuple[str, float]] = []

    def add(self, name: str, amount: float) -> None:
        self[name] = self.get(name, 0) + amount

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(f"seconds.{part}", time.perf_counter() - start)


class Work(ABC):
    """A stage with its tables and models loaded. One a process, shared by its threads."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Everything that changes the output of a split and nothing else, as named digests and values."""

    @abstractmethod
    def schema(self, source: pa.Schema) -> pa.Schema:
        """The output's schema (without the bookkeeping columns) for shards of schema `source`."""

    @property
    def file_metadata(self) -> dict[str, str]:
        """Key-value metadata that every output file carries."""
        return {}

    @property
    def notes(self) -> dict[str, str]:
        """What is worth recording of how the work was done, though it does not change the output."""
        return {}

    @abstractmethod
    def run(self, blocks: Iterator[pa.RecordBatch], stats: Stats) -> Iterator[pa.RecordBatch]:
        """One output row a row of `blocks`, in order, `_row` and `_error` last; counts go to `stats`."""

    def close(self) -> None:  # noqa: B027
        """Let go of files and memory."""


class Stage(ABC):
    """What to do, as small picklable configuration; `open` loads what it takes to do it."""

    name: str

    @abstractmethod
    def columns(self, source: pa.Schema) -> list[str]:
        """The columns of a shard that the stage reads; raises `InputError` where one is missing."""

    @abstractmethod
    def _open(self) -> Work:
        """Load; called once a process through `open`."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Stages of equal keys do the same work: what `open` may share within a process."""

    def open(self) -> Work:
        """The process's one `Work` for this stage, loaded at the first call."""
        return once(self.key, self._open)

    def close(self) -> None:
        """Close and forget the process's `Work`, if there is one: what is on disk under its names may change."""
        with _lock:
            work = _loaded.pop(self.key, None)
        if work is not None:
            work.close()


def once(key: str, load: Callable[[], T]) -> T:
    """What `load` gives, loaded once a process for equal keys; a load that fails is tried again the next time."""
    with _lock:
        if key not in _loaded:
            _loaded[key] = load()
        loaded: T = _loaded[key]
        return loaded


_lock = threading.RLock()
_loaded: dict[str, Any] = {}
