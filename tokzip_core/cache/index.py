"""Where the entries of a cache's files are: an index of keys in memory. Imports numpy, and kernels when used.

A hash table with linear probing (Knuth, The Art of Computer Programming, vol. 3, 6.4), 16 to 48 bytes an entry. It
knows 56 bits of a key: who reads an entry compares the whole of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokzip_core.cache.layer import KEY, CacheError

Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

ROW_BITS = 24
MAX_ROWS = 1 << ROW_BITS  # of a file
MAX_FILES = 1 << 16
_SMALLEST = 1024
_FULL = 0.75


def key_words(keys: pa.FixedSizeBinaryArray) -> Keys:
    """The keys as uint64 `[n, 4]`, not copied. Raises CacheError for another type, or nulls."""
    if keys.type != KEY or keys.null_count:
        raise CacheError(f"cache keys are {KEY} without nulls, got {keys.type} with {keys.null_count} nulls")
    if not len(keys):
        return np.empty((0, 4), np.uint64)
    raw = np.frombuffer(keys.buffers()[1], np.uint8)[keys.offset * 32 :][: len(keys) * 32]
    return raw.view(np.uint64).reshape(-1, 4)


class KeyIndex:
    """Key to place: a file's number (below MAX_FILES) and a row in it (below MAX_ROWS). Not safe between threads."""

    def __init__(self) -> None:
        from tokzip_core.kernels import entries

        self._kernels = entries
        self._slots, self._homes = np.zeros(_SMALLEST, np.uint64), np.zeros(_SMALLEST, np.uint32)
        self._taken = 0

    def find(self, keys: Keys) -> tuple[Places, Places]:
        """The file that the entry of each key is in, or -1; and its row."""
        places = np.empty(len(keys), np.int64)
        self._kernels.find(self._slots, self._homes, keys, places)
        return places >> ROW_BITS, places & (MAX_ROWS - 1)

    def add(self, keys: Keys, file: int, row: int) -> None:
        """The keys are in the file from `row` on, in order."""
        if self._taken + len(keys) > self._slots.size * _FULL:
            self._rebuild(len(keys))
        self._taken += self._kernels.insert(self._slots, self._homes, keys, file << ROW_BITS | row)

    def remove(self, keys: Keys) -> None:
        self._kernels.remove(self._slots, self._homes, keys)

    def drop(self, file: int) -> None:
        """Forget all of a file's entries."""
        self._kernels.drop(self._slots, file << ROW_BITS, (file << ROW_BITS) + MAX_ROWS - 1)

    def _rebuild(self, more: int) -> None:
        """Make room for `more` entries, without the removed ones."""
        slots, homes, size = self._slots, self._homes, _SMALLEST
        while np.count_nonzero(slots > self._kernels.REMOVED) + more > size * _FULL / 1.5:
            size *= 2
        self._slots, self._homes = np.zeros(size, np.uint64), np.zeros(size, np.uint32)
        self._taken = self._kernels.reinsert(self._slots, self._homes, slots, homes)
