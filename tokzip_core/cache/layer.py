"""What a cache layer is. Imports numpy and pyarrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tokzip_core.errors import TokzipError

KEY = pa.binary(32)


class CacheError(TokzipError):
    """A cache that cannot be opened or used as asked; the message names the layer and the cause."""


class CacheLayer(ABC):
    """Values by key. Safe to share between threads; what is put may be forgotten at any time.

    Equal keys are taken to mean equal values, so putting a key that is there already changes nothing.
    `counters` are sums since the layer was opened: hits, misses, puts, evicted, corrupt, failed.
    """

    name: str

    def __init__(self) -> None:
        self.counters = dict.fromkeys(("hits", "misses", "puts", "evicted", "corrupt", "failed"), 0)

    @abstractmethod
    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        """One value a key of `fixed_size_binary[32]`, in order; null where there is none."""

    @abstractmethod
    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        """Keep `values` (binary, no nulls), one a key."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and memory. A closed layer must not be used."""


def key_bytes(keys: pa.FixedSizeBinaryArray) -> list[bytes]:
    """The keys as byte strings. Raises CacheError for another type, or nulls."""
    if keys.type != KEY or keys.null_count:
        raise CacheError(f"cache keys are {KEY} without nulls, got {keys.type} with {keys.null_count} nulls")
    data = keys.buffers()[1]
    if data is None:
        return []
    raw = memoryview(data)[keys.offset * 32 : (keys.offset + len(keys)) * 32].tobytes()
    return [raw[i : i + 32] for i in range(0, len(raw), 32)]


def binary_array(values: Sequence[bytes | memoryview | None]) -> pa.BinaryArray:
    """`values` as binary, None as null; one copy. Raises CacheError above Arrow's 2^31 - 1 bytes."""
    ends = np.zeros(len(values) + 1, np.int64)
    np.cumsum([0 if v is None else len(v) for v in values], out=ends[1:])
    if ends[-1] > np.iinfo(np.int32).max:
        raise CacheError(f"{ends[-1]} bytes of values at once; ask for fewer keys")
    found = np.array([v is not None for v in values], np.bool_)
    valid = None if found.all() else pa.py_buffer(np.packbits(found, bitorder="little"))
    data = pa.py_buffer(b"".join(v for v in values if v is not None))
    return pa.Array.from_buffers(pa.binary(), len(values), [valid, pa.py_buffer(ends.astype(np.int32)), data])
