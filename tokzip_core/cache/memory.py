"""The memory layer: least recently used out first, within a bound of bytes. Imports layer."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pyarrow as pa

from tokzip_core.cache.layer import CacheLayer, binary_array, key_bytes

# What CPython needs for an entry besides the value: two bytes objects (33 + 32 each) and its place in the
# table.
ENTRY_OVERHEAD = 264


class MemoryLayer(CacheLayer):
    """An LRU table of this process. `size` is the bytes held, `ENTRY_OVERHEAD` an entry included."""

    name = "memory"

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = max_bytes
        self.size = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        wanted = key_bytes(keys)
        with self._lock:
            values = [self._entries.get(k) for k in wanted]
            for key, value in zip(wanted, values, strict=True):
                if value is not None:
                    self._entries.move_to_end(key)
            misses = values.count(None)
            self.counters["hits"] += len(values) - misses
            self.counters["misses"] += misses
        return binary_array(values)

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        with self._lock:
            for key, value in zip(key_bytes(keys), values.to_pylist(), strict=True):
                cost = len(value) + ENTRY_OVERHEAD
                if cost > self.max_bytes:  # it would only push out everything else
                    continue
                if key in self._entries:
                    self._entries.move_to_end(key)
                    continue
                while self.size + cost > self.max_bytes:
                    _, gone = self._entries.popitem(last=False)
                    self.size -= len(gone) + ENTRY_OVERHEAD
                    self.counters["evicted"] += 1
                self._entries[key] = value
                self.size += cost
                self.counters["puts"] += 1

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:
        with self._lock:
            for key in key_bytes(keys):
                if (gone := self._entries.pop(key, None)) is not None:
                    self.size -= len(gone) + ENTRY_OVERHEAD

    def close(self) -> None:
        with self._lock:
            self._entries.clear()
            self.size = 0
