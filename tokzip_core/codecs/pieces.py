"""Drive a codec's kernels over a column: encode into small scratch space, decode with bytes to spare after each row.

Imports columns and errors only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tokzip_core.columns import Column, Int32s, Int64s, read_only
from tokzip_core.errors import CorruptBlobError

_RUN = 1 << 18  # tokens encoded at a time: the bytes written stay in the cache
PADDING = 16  # bytes that a kernel may read past the end of a row, and write past its last


def encode_pieces(
    column: Column, bytes_a_token: int, write: Callable[[Int64s, Int64s, Any, Int64s], object]
) -> tuple[bytes, Int64s]:
    """What `write(starts, ends, out, out_ends)` makes of all rows, a run of rows at a time.

    `write` fills `out` (uint8, `bytes_a_token` for each token, PADDING more for each row) and `out_ends` (int64).
    """
    n = len(column)
    sizes = (column.ends - column.starts) * bytes_a_token + PADDING
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    ends = np.empty(n, np.int64)
    parts: list[bytes] = []
    row, size, scratch = 0, 0, np.empty(0, np.uint8)
    while row < n:
        last = max(row + 1, int(np.searchsorted(before, before[row] + _RUN * bytes_a_token, "right")) - 1)
        room = int(before[last] - before[row]) + PADDING
        if scratch.size < room:
            scratch = np.empty(room, np.uint8)
        run = slice(row, last)
        write(column.starts[run], column.ends[run], scratch, ends[run])
        parts.append(scratch[: ends[last - 1]].tobytes())
        ends[run] += size
        size += len(parts[-1])
        row = last
    return b"".join(parts), ends


def decode_pieces(
    column: Column,
    room: int,
    read: Callable[[Any, Int64s, Int64s, Int32s, Int64s], tuple[int, int]],
    faults: dict[int, str],
) -> tuple[Int32s, Int64s]:
    """What `read(data, starts, ends, out, out_ends)` makes of all rows; PADDING bytes follow each row in `data`.

    room: tokens that all rows can hold at most; pages that are never written cost nothing. `read` returns a fault,
    0 for none, and its row.
    """
    starts, stops, data = column.starts, column.ends, column.values
    tokens = np.empty(room, np.int32)
    ends = np.empty(len(column), np.int64)
    size = 0
    # The rows at the end of the data are decoded from a padded copy.
    cut = int(np.searchsorted(stops, data.size - PADDING, "right"))
    for rows in (slice(0, cut), slice(cut, len(column))):
        if rows.start == rows.stop:
            continue
        begin = 0
        if rows.start == cut:
            begin = int(starts[cut])
            data = read_only(np.concatenate((data[begin:], np.zeros(PADDING, np.uint8))))
        fault, row = read(data, starts[rows] - begin, stops[rows] - begin, tokens[size:], ends[rows])
        if fault:
            raise CorruptBlobError(f"row {rows.start + row} is not a blob of this codebook: {faults[fault]}")
        ends[rows] += size
        size = int(ends[rows.stop - 1])
    tokens.resize(size, refcheck=False)
    return tokens, ends
