"""Ids in whole bytes, lowest first. Imports numpy and kernels only."""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.words import load, store

OK, CUT, OVER, NEEDLESS = 0, 1, 2, 3
MAX_ID = 2**31 - 1


@kernel
def encode_rows(values, width, starts, ends, out, out_ends):  # type: ignore[no-untyped-def]
    """Write the rows `values[starts[i]:ends[i]]` into `out`, `width` (1 … 4) bytes an id, and their ends."""
    escape = (uint64(1) << (uint64(8) * width)) - uint64(1)
    at = uint64(0)
    for row in range(starts.size):
        for i in range(uint64(starts[row]), uint64(ends[row])):
            token = uint64(values[i])
            if token < escape:
                store(out, at, token)
                at += width
            else:
                store(out, at, escape)
                store(out, at + width, token)
                at += width + uint64(4)
        out_ends[row] = at


@kernel
def decode_rows(width, data, starts, ends, out, out_ends):  # type: ignore[no-untyped-def]
    """Read the rows `data[starts[i]:ends[i]]` into `out` (int32), and their ends in it; return (fault, row)."""
    escape = (uint64(1) << (uint64(8) * width)) - uint64(1)
    filled = uint64(0)
    for row in range(starts.size):
        at, end = uint64(starts[row]), uint64(ends[row])
        while at < end:
            token = load(data, at) & escape
            at += width
            if token == escape and width < uint64(4):
                token = load(data, at) & uint64(0xFFFFFFFF)
                at += uint64(4)
                if token < escape:
                    return NEEDLESS, np.int64(row)
            if at > end:
                return CUT, np.int64(row)
            if token > uint64(MAX_ID):
                return OVER, np.int64(row)
            out[filled] = token
            filled += uint64(1)
        out_ends[row] = filled
    return OK, np.int64(0)
