"""What a cache layer is. Imports numpy and pyarrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokzip_core.errors import TokzipError

KEY = pa.binary(32)


class CacheError(TokzipError):
    """A cache that cannot be opened or used as asked; the message names the layer and the cause."""


COUNTERS = ("hits", "misses", "puts", "evicted", "refused", "corrupt", "failed")


class CacheLayer(ABC):
    """Values by key. Safe to share between threads; what is put may be forgotten at any time.

    Equal keys are taken to mean equal values, so putting a key that is there already changes nothing.
    `counters` are sums since the layer was opened: hits, misses, puts, evicted, refused (for want of room), corrupt
    (damaged, or another key's: removed) and failed (calls). A call that fails raises CacheError or OSError.
    """

    name: str

    def __init__(self) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)

    def _count(self, **more: Any) -> None:
        for name, count in more.items():
            self.counters[name] += int(count)

    @abstractmethod
    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        """One value a key of `fixed_size_binary[32]`, in order; null where there is none."""

    @abstractmethod
    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        """Keep `values` (binary, no nulls), one a key."""

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:  # noqa: B027
        """Forget the values of `keys`, so that new ones can be put in their place."""

    def flush(self) -> None:  # noqa: B027
        """Write what is held back so far."""

    @abstractmethod
    def close(self) -> None:
        """Flush, and let go of files and memory. A closed layer must not be used."""


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


def array_of(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64], good: npt.NDArray[np.bool_]) -> pa.BinaryArray:
    """Value i is `data` from ends[i - 1] to ends[i]; null where not good. Raises CacheError above 2^31 - 1 bytes."""
    if len(ends) and ends[-1] > np.iinfo(np.int32).max:
        raise CacheError(f"{ends[-1]} bytes of values at once; ask for fewer keys")
    valid = None if good.all() else pa.py_buffer(np.packbits(good, bitorder="little"))
    offsets = np.concatenate([np.zeros(1, np.int32), ends.astype(np.int32)])
    return pa.Array.from_buffers(pa.binary(), len(ends), [valid, pa.py_buffer(offsets), pa.py_buffer(data)])


def flat(values: pa.BinaryArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The bytes of an array of values, not copied, and where each begins and ends in them."""
    _, offsets, data = values.buffers()
    bounds = np.frombuffer(offsets, np.int32)[values.offset :][: len(values) + 1].astype(np.int64)
    raw = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return raw, bounds[:-1], bounds[1:]
