"""Ragged rows of token ids in flat arrays: cut, windowed, put in batches. Imports numpy, pyarrow, tokzip_core."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tokzip_core.blob import TokenBlobType
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


def from_any(rows: Any) -> Rows | pa.Array:
    """Rows of token ids, whatever holds them; texts or token blobs as a column, string or bytes, without nulls.

    rows: an Arrow column of any layout, or an iterable of rows of one kind, each a sequence of ids, a str or bytes.
    Raises InvalidTokensError, naming the row where one is at fault.
    """
    if isinstance(rows, Rows):
        return rows
    if isinstance(rows, pa.Array | pa.ChunkedArray):
        column = _plain(rows)
        kind = column.type
        if pa.types.is_string(kind) or is_blobs(kind):
            if column.null_count:
                raise InvalidTokensError(f"row {np.flatnonzero(column.is_null())[0]}: null")
            return column
        return from_arrow(column)
    if isinstance(rows, str | bytes):  # itself a sequence, of letters
        raise InvalidTokensError(f"expected a sequence of rows, got one text or blob: {rows!r:.60}")
    try:
        if isinstance(rows, Mapping) or hasattr(rows, "columns"):  # a table: what comes of it are names
            raise TypeError
        each = iter(rows)
    except TypeError:
        raise InvalidTokensError(f"expected a sequence of rows, got a {type(rows).__name__}") from None
    return _from_objects(list(each))


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One chunk, its type one of fewer: texts as string, no dictionary, binary view or list of fixed size."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        kind = pa.string()
    elif pa.types.is_binary_view(kind):
        kind = pa.large_binary()
    elif pa.types.is_fixed_size_list(kind):
        kind = pa.large_list(kind.value_type)
    try:
        column = column if kind == column.type else column.cast(kind)
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    except pa.ArrowException as error:
        raise InvalidTokensError(f"expected token ids, texts (2 GiB at most) or blobs: {error}") from error


def is_blobs(kind: pa.DataType) -> bool:
    """Whether a column of this type holds token blobs, or bytes that may be some."""
    return isinstance(kind, TokenBlobType) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _from_objects(rows: list[Any]) -> Rows | pa.Array:
    for kind, name, column in ((str, "text", pa.large_string()), (bytes, "blob", pa.large_binary())):
        like = next((i for i, row in enumerate(rows) if isinstance(row, kind)), None)
        if like is None:
            continue
        for i, row in enumerate(rows):
            if not isinstance(row, kind):
                raise InvalidTokensError(f"row {i}: expected a {name}, as row {like} is, got {row!r:.60}")
        try:
            return _plain(pa.array(rows, column))
        except UnicodeEncodeError as error:  # half of a surrogate pair
            raise InvalidTokensError(f"row {rows.index(error.object)}: not a text of Unicode: {error}") from error
    return from_sequences(rows)


def from_arrow(lists: pa.Array | pa.ChunkedArray) -> Rows:
    """Rows of a column of integer lists. Raises InvalidTokensError for nulls, or ids that are no int32."""
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.combine_chunks()
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.int32()))
    is_view = pa.types.is_list_view(lists.type) or pa.types.is_large_list_view(lists.type)
    if not (is_view or pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)):
        raise InvalidTokensError(f"expected token ids, texts or blobs, got a column of {lists.type}")
    if lists.null_count:
        raise InvalidTokensError(f"row {np.flatnonzero(lists.is_null())[0]}: null tokens")
    offsets = lists.offsets.to_numpy().astype(np.int64)
    try:
        values = lists.values.cast(pa.int32()).to_numpy()
    except pa.ArrowException as error:
        raise InvalidTokensError(f"token ids that are no 32-bit integers, or null: {error}") from error
    if is_view:  # pyarrow 25 loses rows where it casts one to lists
        return Rows(values, offsets, lists.sizes.to_numpy().astype(np.int64))
    return Rows(values, offsets[:-1], np.diff(offsets))


def from_sequences(rows: Sequence[Any]) -> Rows:
    """Rows of lists, numpy arrays or Arrow list scalars of integers. Raises InvalidTokensError naming the row."""
    arrays = []
    for i, row in enumerate(rows):
        try:
            array = np.asarray(row.values if isinstance(row, pa.ListScalar) else row)
        except (TypeError, ValueError):  # lists in it, of several lengths
            array = np.empty((0, 0))
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
    unsigned = rows.values.view(f"u{rows.values.itemsize}")  # a negative id is a large one
    bad = np.flatnonzero(unsigned >= vocabulary)
    first = np.searchsorted(bad, rows.starts)
    return np.searchsorted(bad, rows.starts + rows.lengths) > first
