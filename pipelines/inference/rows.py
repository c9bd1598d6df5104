"""Ragged rows of token ids in flat arrays: cut, windowed, put in batches. Imports numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tokzip_core.errors import InvalidTokensError

# Tokens that a batch of one of several workers may have however many they are; and the last ones have at least.
_LEAST_SHARE = 1024
_LAST_SHARE = 512


@dataclass(frozen=True)
class Rows:
    """Row i is `values[starts[i] : starts[i] + lengths[i]]`. Cutting and taking copy no values."""

    values: np.ndarray  # int32
    starts: np.ndarray  # int64
    lengths: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, indices: np.ndarray) -> Rows:
        return Rows(self.values, self.starts[indices], self.lengths[indices])

    def truncated(self, limit: int) -> Rows:
        """Every row's first `limit` ids."""
        return Rows(self.values, self.starts, np.minimum(self.lengths, limit))

    def windows(self, limit: int) -> tuple[Rows, np.ndarray]:
        """Every row in pieces of `limit` ids, the last one shorter; an empty row is one empty piece.

        Also the number of each row's first piece (int64).
        """
        pieces = np.maximum(1, -(-self.lengths // limit))
        first = np.cumsum(pieces) - pieces
        row = np.repeat(np.arange(len(self)), pieces)
        skipped = (np.arange(len(row)) - first[row]) * limit
        lengths = np.minimum(self.lengths[row] - skipped, limit)
        return Rows(self.values, self.starts[row] + skipped, lengths), first

    def batches(self, budget: int, overhead: int, padded: bool, workers: int = 1) -> Iterator[np.ndarray]:
        """Row numbers in order of length, in batches of at most `budget` tokens, `overhead` a row counted.

        Where the rows will be `padded`, a token of padding counts as well. A row above the budget is alone. For
        several `workers` the budget is divided among them, and the last batches are smaller, so that all end at
        about the same time (guided self-scheduling, Polychronopoulos and Kuck 1987).
        """
        order = np.argsort(self.lengths, kind="stable")
        lengths = self.lengths[order] + overhead
        left = int(lengths.sum())
        budget = min(budget, max(budget // workers, _LEAST_SHARE))
        most, start, total = _guided(budget, left, workers), 0, 0
        for i, length in enumerate(lengths.tolist()):
            total = (i + 1 - start) * length if padded else total + length
            if total > most and i > start:
                yield order[start:i]
                start, total = i, length
                most = _guided(budget, left, workers)
            left -= length
        if start < len(order):
            yield order[start:]

    def layout(self, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """All rows one after another, each between `prefix` and `suffix`: flat ids, lengths (int64)."""
        lengths = self.lengths + len(prefix) + len(suffix)
        row = np.repeat(np.arange(len(self)), lengths)
        at = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row] - len(prefix)
        inside = (at >= 0) & (at < self.lengths[row])
        ids = np.empty(len(row), np.int64)
        ids[inside] = self.values[self.starts[row[inside]] + at[inside]]
        for k, special in enumerate(prefix):
            ids[at == k - len(prefix)] = special
        for k, special in enumerate(suffix):
            ids[at == self.lengths[row] + k] = special
        return ids, lengths


def from_arrow(lists: pa.ListArray) -> Rows:
    """Rows of a column of integer lists. Raises InvalidTokensError for nulls, or ids that are no int32."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        raise InvalidTokensError(f"expected lists of token ids, got {lists.type}")
    if lists.null_count:
        raise InvalidTokensError(f"row {np.flatnonzero(lists.is_null())[0]}: null tokens")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    try:
        values = lists.values.cast(pa.int32()).to_numpy()
    except pa.ArrowInvalid as error:
        raise InvalidTokensError(f"token ids that are no 32-bit integers, or null: {error}") from error
    return Rows(values, offsets[:-1], np.diff(offsets))


def from_sequences(rows: Sequence[Any]) -> Rows:
    """Rows of lists, numpy arrays or Arrow list scalars of integers. Raises InvalidTokensError naming the row."""
    arrays = []
    for i, row in enumerate(rows):
        array = np.asarray(row.values if isinstance(row, pa.ListScalar) else row)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise InvalidTokensError(f"row {i}: expected a sequence of token ids, got {row!r:.60}")
        if array.size and (array.min() < 0 or array.max() >= 2**31):
            raise InvalidTokensError(f"row {i}: token ids outside 0 … 2^31 - 1")
        arrays.append(array.astype(np.int32))
    lengths = np.array([len(a) for a in arrays], np.int64)
    values = np.concatenate([np.empty(0, np.int32), *arrays])
    return Rows(values, np.cumsum(lengths) - lengths, lengths)


def _guided(budget: int, left: int, workers: int) -> int:
    """The size of the next batch where `left` tokens are to be done by all workers."""
    return budget if workers == 1 else min(budget, max(_LAST_SHARE, left // (2 * workers)))


def outside(rows: Rows, vocabulary: int) -> np.ndarray:
    """Which rows (bool) hold an id that is not in 0 … vocabulary - 1."""
    bad = np.flatnonzero((rows.values < 0) | (rows.values >= vocabulary))
    first = np.searchsorted(bad, rows.starts)
    return np.searchsorted(bad, rows.starts + rows.lengths) > first
