"""Arrow columns as flat arrays: integer lists to token arrays and back, untrusted offsets checked.

Imports numpy, pyarrow and errors only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokzip_core.errors import CorruptBlobError, InvalidTokensError

Bools = npt.NDArray[np.bool_]
UInt8s = npt.NDArray[np.uint8]
Int32s = npt.NDArray[np.int32]
UInt32s = npt.NDArray[np.uint32]
Int64s = npt.NDArray[np.int64]

MAX_ID = 2**31 - 1
MAX_BYTES = 2**31 - 1  # what the 32-bit offsets of pa.binary and pa.list_ can address


@dataclass
class Column:
    """Rows of a flat array: row i is `values[starts[i]:ends[i]]`, null (and empty) where `valid[i]` is false.

    values: uint32 tokens or uint8 blob bytes; starts, ends: int64, within `values`; valid: None if no row is null.
    """

    values: Any
    starts: Int64s
    ends: Int64s
    valid: Bools | None

    def __len__(self) -> int:
        return self.starts.size

    def tokens(self) -> UInt32s:
        """The values of all rows, one after the other."""
        if not len(self) or np.array_equal(self.starts[1:], self.ends[:-1]):
            flat: UInt32s = self.values[self.starts[0] : self.ends[-1]] if len(self) else self.values[:0]
            return flat
        return np.concatenate([self.values[a:b] for a, b in zip(self.starts, self.ends, strict=True)])


def arrays(tokens: Any) -> Iterator[pa.Array]:
    """The arrays of an array, a ChunkedArray, or an iterable of either."""
    if isinstance(tokens, pa.Array):
        yield tokens
    elif isinstance(tokens, pa.ChunkedArray):
        yield from tokens.chunks
    elif isinstance(tokens, Iterable) and not isinstance(tokens, str | bytes):
        for part in tokens:
            if not isinstance(part, pa.Array | pa.ChunkedArray):
                raise InvalidTokensError(f"expected Arrow arrays of integer lists, got {type(part).__name__}")
            yield from arrays(part)
    else:
        raise InvalidTokensError(f"expected an Arrow array of integer lists, got {type(tokens).__name__}")


def numbered(tokens: Any) -> Iterator[tuple[int, pa.Array]]:
    """Each of `arrays`, and the number of its first row in all of them."""
    first = 0
    for array in arrays(tokens):
        yield first, array
        first += len(array)


def token_column(array: pa.Array, first: int = 0, check: bool = True) -> Column:
    """`array` (lists of any integer type), whose rows are numbered from `first`, as a Column of uint32 ids.

    Raises InvalidTokensError for another type, a null item in a row, or an id outside 0 … 2^31 - 1; without `check`,
    such an id of 32 bits is let through as a value over 2^31 - 1.
    """
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type):
        raise InvalidTokensError(f"expected lists of integers, got {kind}")
    valid = _valid(array)
    if isinstance(array, pa.FixedSizeListArray):
        bounds = np.arange(len(array) + 1, dtype=np.int64) * kind.list_size + array.offset * kind.list_size
    elif (found := _offsets(array, isinstance(array, pa.LargeListArray))) is None:
        raise InvalidTokensError("the column's offsets are cut short")
    else:
        bounds = found
    begin, end = int(bounds[0]), int(bounds[-1])
    if begin:
        bounds -= begin
    starts, ends = bounds[:-1], bounds[1:]
    items = array.values
    if begin < 0 or end > len(items) or np.count_nonzero(starts > ends):
        raise InvalidTokensError("the column's offsets are out of order or beyond its values")
    if valid is not None:
        ends = np.where(valid, ends, starts)
    items = items.slice(begin, end - begin)
    if items.null_count:
        _refuse(np.asarray(items.is_null()), starts, ends, first, "has a null item")
        items = items.fill_null(0)
    values = items.to_numpy()
    # Seen as unsigned, a negative id is over MAX_ID; for this one look, all of the column comes from memory.
    wide = values.itemsize < 4 or (
        (check or values.itemsize > 4) and values.view(f"u{values.itemsize}").max(initial=0) > MAX_ID
    )
    if wide:
        _refuse(values < 0, starts, ends, first, "has a negative id")
        _refuse(values > MAX_ID, starts, ends, first, f"has an id over {MAX_ID}")
    tokens = values.view(np.uint32) if values.dtype == np.int32 else values.astype(np.uint32, copy=False)
    return Column(read_only(tokens), starts, ends, valid)


def _refuse(bad: Bools, starts: Int64s, ends: Int64s, first: int, fault: str) -> None:
    before = np.concatenate(([0], np.cumsum(bad)))
    rows = np.flatnonzero(before[ends] > before[starts])  # what lies under a null row is nobody's
    if rows.size:
        raise InvalidTokensError(f"row {first + rows[0]} {fault}")


def blob_column(array: pa.Array) -> Column:
    """`array` (binary or large_binary, from an untrusted source) as a Column of uint8 bytes, its bounds checked.

    Raises CorruptBlobError naming the first row whose bounds are not in order or not within the data.
    """
    large = pa.types.is_large_binary(array.type)
    if not large and not pa.types.is_binary(array.type):
        raise CorruptBlobError(f"expected a column of type binary, got {array.type}")
    data = array.buffers()[2]
    values = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    bounds = _offsets(array, large)
    if bounds is None:
        raise CorruptBlobError("the column's offsets are cut short")
    starts, ends = bounds[:-1], bounds[1:]
    if bounds[0] < 0 or bounds[-1] > values.size or np.count_nonzero(starts > ends):
        row = int(np.flatnonzero((starts < 0) | (starts > ends) | (ends > values.size))[0])
        raise CorruptBlobError(f"row {row}: bounds {bounds[row]} … {bounds[row + 1]} of {values.size} bytes")
    valid = _valid(array)
    if valid is not None:
        ends = np.where(valid, ends, starts)
    return Column(read_only(values), starts, ends, valid)


def _offsets(array: pa.Array, large: bool) -> Int64s | None:
    """Where the rows of a list or binary array begin, and the last ends; None where its buffer holds fewer.

    Straight from the buffer: after other work, when nothing is in the processor's caches, each step through pyarrow
    costs as much as encoding 10,000 tokens.
    """
    n, offsets = len(array), array.buffers()[1]
    if not n:
        return np.zeros(1, np.int64)
    width = np.dtype(np.int64 if large else np.int32)
    if offsets is None or offsets.size < (array.offset + n + 1) * width.itemsize:
        return None
    return np.frombuffer(offsets, width, n + 1, array.offset * width.itemsize).astype(np.int64)


def variable_array(kind: pa.DataType, ends: Int64s, data: Any, valid: Bools | None) -> pa.Array:
    """Rows that lie one after the other in `data`, as `binary` or `list<int32>`; `ends`: each row's end."""
    if ends.size and ends[-1] > MAX_BYTES:
        raise InvalidTokensError(f"{ends[-1]} items in one array of {kind}: pass fewer rows at a time")
    offsets = np.empty(ends.size + 1, np.int32)
    offsets[0], offsets[1:] = 0, ends
    mask = None
    if valid is not None:
        mask = pa.py_buffer(np.packbits(valid, bitorder="little"))
    if pa.types.is_binary(kind):
        return pa.Array.from_buffers(kind, ends.size, [mask, pa.py_buffer(offsets), pa.py_buffer(data)])
    items = pa.Array.from_buffers(kind.value_type, len(data), [None, pa.py_buffer(data)])
    return pa.Array.from_buffers(kind, ends.size, [mask, pa.py_buffer(offsets)], children=[items])


def _valid(array: pa.Array) -> Bools | None:
    return np.asarray(array.is_valid()) if array.null_count else None


def read_only(values: Any) -> Any:
    """One flavour of array for the kernels, so that each is compiled once."""
    values = values.view()
    values.flags.writeable = False
    return values
