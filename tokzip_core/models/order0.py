"""The order-0 model: how often each id occurs, whatever stands before it. Imports numpy and columns only."""

from __future__ import annotations

import numpy as np

from tokzip_core.columns import Column, Int64s, UInt32s

_DENSE = 1 << 22  # below this, counting in an array by id is faster than sorting


class Order0:
    """Sparse counts of ids: `ids` (uint32, rising) and `counts` (int64, positive). Adding commutes."""

    def __init__(self) -> None:
        self.ids: UInt32s = np.empty(0, np.uint32)
        self.counts: Int64s = np.empty(0, np.int64)

    def add(self, column: Column) -> None:
        tokens = column.tokens()
        if tokens.size == 0:
            return
        if tokens.max() < _DENSE:
            dense = np.bincount(tokens)
            ids = np.flatnonzero(dense)
            self._add(ids.astype(np.uint32), dense[ids].astype(np.int64))
        else:
            self._add(*np.unique(tokens, return_counts=True))

    def merge(self, other: Order0) -> None:
        self._add(other.ids, other.counts)

    def _add(self, ids: UInt32s, counts: Int64s) -> None:
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
