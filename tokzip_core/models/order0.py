"""The order-0 model: how often each id occurs, whatever stands before it. Imports numpy and columns only."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.columns import Column, Int64s

_AT_ONCE = 1 << 20  # numpy counts in 8 bytes an id
_DENSE = 1 << 22  # below this, counting in an array by id is faster than sorting


class Order0:
    """Sparse counts of ids: `ids` (uint32 or uint64, rising) and `counts` (int64, positive). Adding commutes."""

    def __init__(self, dtype: type[np.uint32] | type[np.uint64] = np.uint32) -> None:
        self.ids: Any = np.empty(0, dtype)
        self.counts: Int64s = np.empty(0, np.int64)

    def add(self, column: Column) -> None:
        self.count(column.tokens())

    def count(self, ids: Any) -> None:
        """Count each of `ids`."""
        for at in range(0, ids.size, _AT_ONCE):
            self._count(ids[at : at + _AT_ONCE])

    def _count(self, ids: Any) -> None:
        large = ids >= _DENSE
        if large.any():
            self.add_counts(*np.unique(ids[large], return_counts=True))
            ids = ids[~large]
        if ids.size:
            dense = np.bincount(ids)
            seen = np.flatnonzero(dense)
            self.add_counts(seen.astype(self.ids.dtype), dense[seen].astype(np.int64))

    def merge(self, other: Order0) -> None:
        self.add_counts(other.ids, other.counts)

    def add_counts(self, ids: Any, counts: Int64s) -> None:
        """Add `counts` (int64) to those of `ids` (rising)."""
        every, where = np.unique(np.concatenate((self.ids, ids)), return_inverse=True)
        sums = np.zeros(every.size, np.int64)
        sums[where[: self.ids.size]] += self.counts
        sums[where[self.ids.size :]] += counts
        self.ids, self.counts = every, sums

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return int(self.counts.sum())

    @property
    def entropy(self) -> float:
        """Bits a token: the least that any code without context can spend (Shannon 1948); 0 without tokens."""
        shares = self.counts / max(1, int(self.counts.sum()))
        return float(-(shares * np.log2(shares)).sum()) + 0.0
