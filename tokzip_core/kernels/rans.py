"""Encode and decode whole columns with rANS (coders/rans.py). Imports numpy, coders, kernels.

The state x stays in 2^24 … 2^56 - 1 once a row is that long; words of 32 bits are moved out of it and in.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.coders.rans import UNASSIGNED
from tokzip_core.kernels import kernel
from tokzip_core.kernels.lookup import entry_of
from tokzip_core.kernels.words import load, store

OK, ZERO_TOP, NO_CLASS, KNOWN_ESCAPED, FULL = 0, 1, 2, 3, -1
LEAST = 1 << 24
ESCAPED = (16, 15)  # bits of an escaped id: the high ones first


@kernel
def encode_rows(values, symbols, ids, id_symbols, escape, starts, ends, out, out_ends):  # type: ignore[no-untyped-def]
    """Write the rows `values[starts[i]:ends[i]]` into `out`, and each blob's end into `out_ends`.

    As rANS writes backwards, a row is written at the end of `out` first. `out` has room for 8 bytes a token and 16
    more a row, and as much as the largest row once more.
    """
    top = uint64(symbols.size - 1)
    at = uint64(0)
    for row in range(starts.size):
        x, p = uint64(0), uint64(out.size - 8)
        i, begin = uint64(ends[row]), uint64(starts[row])
        while i > begin:
            i -= uint64(1)
            token = uint64(values[i])
            symbol = symbols[min(token, top)]
            if symbol == 0:
                symbol = entry_of(values[i], ids, id_symbols)
            if symbol == 0:
                symbol = uint64(escape)
                if x >= uint64(1) << uint64(41):
                    p -= uint64(4)
                    store(out, p - uint64(4), x << uint64(32))
                    x >>= uint64(32)
                x = x << uint64(15) | (token & uint64(0x7FFF))
                if x >= uint64(1) << uint64(40):
                    p -= uint64(4)
                    store(out, p - uint64(4), x << uint64(32))
                    x >>= uint64(32)
                x = x << uint64(16) | token >> uint64(15)
            frequency, first = symbol & uint64(4095), (symbol >> uint64(12)) & uint64(4095)
            extra = (symbol >> uint64(24)) & uint64(255)
            if x >= frequency << (uint64(44) - extra):
                p -= uint64(4)
                store(out, p - uint64(4), x << uint64(32))
                x >>= uint64(32)
            x = x << extra | symbol >> uint64(32)
            whole = x // frequency
            x = (whole << uint64(12)) + (x - whole * frequency) + first
        while x > 0:
            out[at] = x & uint64(255)
            x >>= uint64(8)
            at += uint64(1)
        for j in range(p, uint64(out.size - 8)):
            out[at] = out[j]
            at += uint64(1)
        out_ends[row] = at


@kernel
def decode_rows(data, starts, ends, slots, tokens, ids, id_symbols, out, out_ends):  # type: ignore[no-untyped-def]
    """Decode the blobs `data[starts[i]:ends[i]]` into `out` (int32), and each row's end in it.

    data: uint8, with 8 bytes after the last row. Returns (fault, row of the fault); FULL where `out` has no room for
    that row.
    """
    low, byte, least = uint64(4095), uint64(255), uint64(LEAST)
    twelve, one = uint64(12), uint64(1)
    filled, room = uint64(0), uint64(out.size)
    for row in range(starts.size):
        at, end = uint64(starts[row]), uint64(ends[row])
        if at == end:
            out_ends[row] = filled
            continue
        size = end - at
        if size > uint64(7):
            size = uint64(4) + (size & uint64(3))
        x = load(data, at) & ((one << (uint64(8) * size)) - one)
        at += size
        if data[at - one] == 0:
            return ZERO_TOP, np.int64(row)
        while x != 0:
            entry = slots[x & low]
            if entry == 0:
                return NO_CLASS, np.int64(row)
            x = (entry & low) * (x >> twelve) + ((entry >> twelve) & low)
            extra = (entry >> uint64(24)) & byte
            token = tokens[(entry >> uint64(32)) + (x & ((one << extra) - one))]
            x >>= extra
            if x < least and at < end:
                x = x << uint64(32) | (load(data, at) & uint64(0xFFFFFFFF))
                at += uint64(4)
            if token < 0:
                if token == UNASSIGNED:
                    return NO_CLASS, np.int64(row)
                value = uint64(0)
                for bits in ESCAPED:
                    value = value << uint64(bits) | (x & ((one << uint64(bits)) - one))
                    x >>= uint64(bits)
                    if x < least and at < end:
                        x = x << uint64(32) | (load(data, at) & uint64(0xFFFFFFFF))
                        at += uint64(4)
                token = np.int32(value)
                if entry_of(np.uint32(value), ids, id_symbols) != 0:
                    return KNOWN_ESCAPED, np.int64(row)
            if filled == room:
                return FULL, np.int64(row)
            out[filled] = token
            filled += one
        out_ends[row] = filled
    return OK, np.int64(0)
