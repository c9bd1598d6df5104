"""What the `context` codec trains on: a bounded sample of rows. Imports numpy, columns, models/order0, kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.columns import Column, Int64s, UInt32s
from tokzip_core.models.order0 import Order0

SAMPLE = 12_000_000  # tokens kept
LONGEST_ROW = 1 << 16  # of a longer row only its beginning is kept


class SampledRows:
    """Rows with the smallest digests, up to SAMPLE tokens, and the counts of all ids.

    A row is kept if the rows of smaller digests, with it, fit: so what is kept depends on neither order nor division.
    """

    def __init__(self) -> None:
        self.counts = Order0()
        self._parts: list[tuple[Any, Int64s, UInt32s]] = []  # digests (uint64), lengths, tokens one row after the other
        self._held = 0

    def add(self, column: Column) -> None:
        from tokzip_core.kernels.context_train import row_digests

        self.counts.add(column)
        if not len(column):
            return
        ends = np.minimum(column.ends, column.starts + LONGEST_ROW)
        digests = np.empty(len(column), np.uint64)
        row_digests(column.values, column.starts, ends, digests)
        lengths = ends - column.starts
        self._keep(digests, lengths, _rows(column.values, column.starts, lengths))

    def merge(self, other: SampledRows) -> None:
        self.counts.merge(other.counts)
        for part in other._parts:
            self._keep(*part)

    def _keep(self, digests: Any, lengths: Int64s, tokens: UInt32s) -> None:
        if tokens.size == 0 or tokens.max() < 1 << 16:
            tokens = tokens.astype(np.uint16)  # half the memory, and the bytes that cross a shuffle
        self._parts.append((digests, lengths, tokens))
        self._held += tokens.size + lengths.size
        if self._held > SAMPLE + SAMPLE // 4:
            self._parts = [self._chosen()]
            self._held = self._parts[0][1].size + self._parts[0][2].size

    def _chosen(self) -> tuple[Any, Int64s, UInt32s]:
        digests, lengths, tokens = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        starts = np.cumsum(lengths) - lengths
        order = np.lexsort((lengths, digests))
        order = order[np.cumsum(lengths[order] + 1) <= SAMPLE]
        return digests[order], lengths[order], _rows(tokens, starts[order], lengths[order])

    def rows(self) -> tuple[UInt32s, Int64s]:
        """The sample's tokens, one row after the other, and the rows' lengths, in order of digests."""
        if not self._parts:
            return np.empty(0, np.uint32), np.empty(0, np.int64)
        _, lengths, tokens = self._chosen()
        return tokens.astype(np.uint32), lengths

    @property
    def tokens(self) -> int:
        return self.counts.tokens

    @property
    def entropy(self) -> float:
        return self.counts.entropy


def _rows(values: Any, starts: Int64s, lengths: Int64s) -> Any:
    """`values[starts[i] : starts[i] + lengths[i]]`, one after the other."""
    begins = np.cumsum(lengths) - lengths
    return values[np.arange(int(lengths.sum())) + np.repeat(starts - begins, lengths)]
