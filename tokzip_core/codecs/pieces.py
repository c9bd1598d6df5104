"""Drive a codec's kernels over a column: encode into room made as needed, decode with bytes to spare after each row.

Imports columns and errors only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from tokzip_core.columns import Column, Int32s, Int64s, UInt8s, read_only
from tokzip_core.errors import CorruptBlobError

_RUN = 1 << 20  # tokens encoded at a time: the most room for the worst case that is made at once
FULL = -1  # a kernel needs more room
PADDING = 16  # bytes that a kernel may read past the end of a row, and write past its last


class Room:
    """An array in memory from Arrow's pool, which keeps what is given back: fresh pages would cost more than coding."""

    def __init__(self, dtype: Any, size: int) -> None:
        self.dtype, self.size = np.dtype(dtype), size
        self._buffer = pa.allocate_buffer(size * self.dtype.itemsize, resizable=True)

    def cut(self, size: int) -> None:
        """Keep the first `size` items alone; no array of before may be used again."""
        self.size = size
        self._buffer.resize(size * self.dtype.itemsize, shrink_to_fit=False)

    def grown(self, size: int, kept: int) -> Room:
        """Room for `size` items, the first `kept` of them as here: what was not written to costs no memory so."""
        room = Room(self.dtype, size)
        room.array()[:kept] = self.array()[:kept]
        return room

    def array(self) -> Any:
        return np.frombuffer(self._buffer, self.dtype)


def encode_pieces(
    column: Column, bytes_a_token: int, write: Callable[[Int64s, Int64s, UInt8s, Int64s], object]
) -> tuple[UInt8s, Int64s]:
    """What `write(starts, ends, out, out_ends)` makes of all rows, called for a run of rows at a time.

    column: no row begins before the one before it ends. `write` fills `out` (uint8, `bytes_a_token` for each token,
    PADDING more for each row) and `out_ends` (int64).
    """
    n, starts = len(column), column.starts
    ends = np.empty(n, np.int64)
    tokens = int(column.ends[-1] - starts[0]) if n else 0
    likely = min(tokens, tokens // 3 + _RUN) * bytes_a_token + (min(n, _RUN) + 1) * PADDING
    row, size, out = 0, 0, Room(np.uint8, likely)
    while row < n:
        last = int(column.ends.searchsorted(starts[row] + _RUN, "right"))
        last = max(row + 1, min(last, row + _RUN))
        run = slice(row, last)
        room = size + int(column.ends[last - 1] - starts[row]) * bytes_a_token + (last - row + 1) * PADDING
        if out.size < room:
            out = out.grown(room + out.size // 2, size)
        write(starts[run], column.ends[run], out.array()[size:], ends[run])
        if size:
            ends[run] += size
        row, size = last, int(ends[last - 1])
    out.cut(size)
    return out.array(), ends


def decode_pieces(
    column: Column,
    room: int,
    read: Callable[[Any, Int64s, Int64s, Int32s, Int64s], tuple[int, int]],
    faults: dict[int, str],
) -> tuple[Int32s, Int64s]:
    """What `read(data, starts, ends, out, out_ends)` makes of all rows; PADDING bytes follow each row in `data`.

    room: tokens that all rows can hold at most, or are likely to; pages that are never written cost nothing. `read`
    returns a fault, 0 for none, and its row; FULL where `out` has no room for that row: it is called again with more.
    """
    starts, stops, data = column.starts, column.ends, column.values
    out = Room(np.int32, room)
    ends = np.empty(len(column), np.int64)
    size = 0
    # The rows at the end of the data are decoded from a padded copy.
    cut = int(stops.searchsorted(data.size - PADDING, "right"))
    row, last = 0, cut
    while row < len(column):
        if row == last:
            begin, last = int(starts[cut]), len(column)
            data = read_only(np.concatenate((data[begin:], np.zeros(PADDING, np.uint8))))
            starts, stops = starts - begin, stops - begin
        rows = slice(row, last)
        fault, row = read(data, starts[rows], stops[rows], out.array()[size:], ends[rows])
        if fault not in (0, FULL):
            raise CorruptBlobError(f"row {rows.start + row} is not a blob of this codebook: {faults[fault]}")
        row = last if fault == 0 else rows.start + row
        if size:
            ends[rows.start : row] += size
        size = int(ends[row - 1]) if row else 0
        if fault == FULL:
            out = out.grown(2 * out.size + 1024, size)
    out.cut(size)
    return out.array(), ends
