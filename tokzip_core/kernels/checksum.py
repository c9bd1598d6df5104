"""CRC-16 of every row of a column, and rows moved together. Imports numpy and kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.words import load

POLYNOMIAL = 0x8408  # x^16 + x^12 + x^5 + 1 with the lowest bit first
FIRST = 0x6363  # the remainder before any byte: no run of equal bytes, so that a run cut short is found too


def _tables() -> Any:
    """uint64[8 * 256]: what each of 8 bytes adds to the CRC at the end of them ("slicing by 8")."""
    last = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        last = last >> np.uint64(1) ^ np.where(last & np.uint64(1), np.uint64(POLYNOMIAL), np.uint64(0))
    tables = [last]
    for _ in range(7):
        tables.append(tables[0][tables[-1] & np.uint64(255)] ^ tables[-1] >> np.uint64(8))
    return np.concatenate(tables[::-1])


_TABLES = _tables()


@kernel
def crc(data, at, end):  # type: ignore[no-untyped-def]
    """The CRC of `data[at:end]` (uint8) as uint64; 0 of bytes that end with their own CRC, lower byte first."""
    byte, eight = uint64(255), uint64(8)
    remainder = uint64(FIRST)
    while at + eight <= end:
        word = load(data, at) ^ remainder
        remainder = uint64(0)
        for table in range(uint64(0), uint64(8 * 256), uint64(256)):
            remainder ^= _TABLES[table + (word & byte)]
            word >>= eight
        at += eight
    while at < end:
        remainder = _TABLES[uint64(7 * 256) + ((remainder ^ data[at]) & byte)] ^ remainder >> eight
        at += uint64(1)
    return remainder


@kernel
def append_checksums(data, starts, ends, valid, out, out_ends):  # type: ignore[no-untyped-def]
    """Copy rows `data[starts[i]:ends[i]]` into `out`, each valid one with its checksum after it, and their ends."""
    at = uint64(0)
    for row in range(starts.size):
        begin, end = uint64(starts[row]), uint64(ends[row])
        for i in range(begin, end):
            out[at] = data[i]
            at += uint64(1)
        if valid[row]:
            checksum = crc(data, begin, end)
            out[at] = checksum & uint64(255)
            out[at + uint64(1)] = checksum >> uint64(8)
            at += uint64(2)
        out_ends[row] = at


@kernel
def first_wrong(data, starts, ends, valid):  # type: ignore[no-untyped-def]
    """The first valid row that does not end with the checksum of what is before it, or -1."""
    for row in range(starts.size):
        if valid[row] and (ends[row] - starts[row] < 2 or crc(data, uint64(starts[row]), uint64(ends[row])) != 0):
            return row
    return -1


@kernel
def gather(data, starts, ends, out):  # type: ignore[no-untyped-def]
    """Copy the rows `data[starts[i]:ends[i]]` into `out`, one after the other."""
    at = uint64(0)
    for row in range(starts.size):
        for i in range(uint64(starts[row]), uint64(ends[row])):
            out[at] = data[i]
            at += uint64(1)
