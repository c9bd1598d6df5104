"""Deal out the codes of a prefix-class code (coders/prefix.py). Imports numpy and kernels only."""

from __future__ import annotations

import numpy as np

from tokzip_core.kernels import kernel

_REVERSED = np.array([int(f"{i:08b}"[::-1], 2) for i in range(256)], np.uint32)


@kernel
def extra_bits(length):  # type: ignore[no-untyped-def]
    """The bits of a code of `length` bits that stand after its slot."""
    return max(0, length - 8)


@kernel
def slots_of(length):  # type: ignore[no-untyped-def]
    """The slots that a code of `length` bits, or the codes that share them, takes."""
    return 1 << max(0, 8 - length)


@kernel
def assign_codes(lengths, first_rank, slots, entries, ranks):  # type: ignore[no-untyped-def]
    """Assign a code to every symbol, in order of (length, symbol); return how many ranks they take, -1 for no room.

    lengths: uint8[n], 1 … 27; filled in: slots (uint32[256], of zeros) with rank << 5 | length, entries (uint32[n])
    with code << 5 | length, ranks (int64[n]); ranks are counted from `first_rank`.
    """
    counts = np.zeros(28, np.int64)
    for length in lengths:
        counts[length] += 1
    tops, firsts = np.zeros(28, np.int64), np.zeros(28, np.int64)
    top, rank = 256, first_rank
    for length in range(1, 28):
        extra, width = extra_bits(length), slots_of(length)
        groups = (counts[length] + (1 << extra) - 1) >> extra
        if width * groups >= top:  # slot 0 is nobody's
            return -1
        tops[length], firsts[length] = top, rank
        for _ in range(groups):
            top -= width
            for i in range(top, top + width):
                slots[_REVERSED[i]] = (rank << 5) | length
            rank += 1 << extra
    counts[:] = 0
    for symbol in range(lengths.size):
        length = np.int64(lengths[symbol])
        extra, place = extra_bits(length), counts[length]
        counts[length] += 1
        slot = tops[length] - ((place >> extra) + 1) * slots_of(length)
        code = np.int64(_REVERSED[slot]) | (place & ((1 << extra) - 1)) << 8
        entries[symbol] = code << 5 | length
        ranks[symbol] = firsts[length] + place
    return rank - first_rank
