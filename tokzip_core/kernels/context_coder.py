"""A range coder over lists, flags and adaptive numbers, for kernels/context*.py. Imports numpy, numba and kernels only.

Range coding (Martin 1979) on 64 bits: `range` stays at or above 2^48, bytes move two at a time, and a carry runs back
into the bytes already written. A reader takes what lies after the end for zeros.

A coder's state is a uint64[4]: low (of a writer) or code (of a reader), range, bytes written or read, end of the bytes.
A **list** is a row of `heads` (uint32[., 4]): floor(2^32 / total weight), the weight before the escape, the first
class, the list to go on with after an escape. A class is a row of `classes` (uint32[., 2]): the weight up to its end,
the number of its first entry << 5 | q. Each entry of a class weighs 2^q.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel

NONE = np.uint32(0xFFFFFFFF)  # no list, no entry
FULL = np.uint64(0xFFFFFFFFFFFFFFFF)


@kernel
def start_writing(state):  # type: ignore[no-untyped-def]
    state[0] = uint64(0)
    state[1] = FULL


@kernel
def carry(out, at):  # type: ignore[no-untyped-def]
    """Add one to the number that ends before `out[at]`; it never runs back beyond the row, as a row begins at zero."""
    at -= uint64(1)
    while out[at] == 255:
        out[at] = 0
        at -= uint64(1)
    out[at] += 1


@kernel
def put(state, out, begin, size):  # type: ignore[no-untyped-def]
    """Narrow the range to `size` from `begin` on."""
    low = state[0] + begin
    if low < begin:
        carry(out, state[2])
    while size < uint64(1 << 48):
        at = state[2]
        out[at] = low >> uint64(56)
        out[at + uint64(1)] = (low >> uint64(48)) & uint64(255)
        state[2] = at + uint64(2)
        low <<= uint64(16)
        size <<= uint64(16)
    state[0] = low
    state[1] = size


@kernel
def finish_writing(state, out):  # type: ignore[no-untyped-def]
    """Write the fewest bytes that name a number within the range when zeros follow."""
    low = state[0]
    last = low + (state[1] - uint64(1))
    if low == 0:
        return
    if last < low:
        carry(out, state[2])  # 2^64 is within the range: no byte more
        return
    kept, value = uint64(0), uint64(0)
    while value < low or value > last:
        kept += uint64(1)
        below = FULL >> (uint64(8) * kept) if kept < uint64(8) else uint64(0)
        value = (low + below) & ~below
    for _ in range(kept):
        out[state[2]] = value >> uint64(56)
        value <<= uint64(8)
        state[2] += uint64(1)


@kernel
def put_bits(state, out, value, bits):  # type: ignore[no-untyped-def]
    """Up to 16 bits as they are."""
    unit = state[1] >> bits
    put(state, out, unit * value, unit)


@kernel
def put_flag(state, out, flag, chance):  # type: ignore[no-untyped-def]
    """A flag that is set in `chance` of 65,536 cases."""
    size = (state[1] >> uint64(16)) * chance
    if flag:
        put(state, out, uint64(0), size)
    else:
        put(state, out, size, state[1] - size)


@kernel
def put_number(state, out, numbers, context, value):  # type: ignore[no-untyped-def]
    """An Elias gamma code of `value` + 1 (Elias 1975), its unary part in adaptive flags `numbers[context]`."""
    value += uint64(1)
    length = uint64(0)
    while value >> (length + uint64(1)) != 0:
        length += uint64(1)
    for i in range(length + uint64(1)):
        more = uint64(i) < length
        chance = numbers[context, i]
        put_flag(state, out, more, chance)
        numbers[context, i] = adapted(chance, more)
    if length > uint64(16):
        put_bits(
            state, out, (value >> uint64(16)) & ((uint64(1) << (length - uint64(16))) - uint64(1)), length - uint64(16)
        )
        length = uint64(16)
    put_bits(state, out, value & ((uint64(1) << length) - uint64(1)), length)


@kernel
def adapted(chance, flag):  # type: ignore[no-untyped-def]
    """An adaptive flag's chance after one more flag (as in LZMA)."""
    return chance + ((uint64(65536) - chance) >> uint64(5)) if flag else chance - (chance >> uint64(5))


@kernel
def start_reading(state, data, begin, end):  # type: ignore[no-untyped-def]
    code = uint64(0)
    for i in range(begin, begin + uint64(8)):
        code = (code << uint64(8)) | (uint64(data[i]) if i < end else uint64(0))
    state[0], state[1], state[2], state[3] = code, FULL, begin + uint64(8), end


@kernel
def narrow(state, data, code, size):  # type: ignore[no-untyped-def]
    """Take in more bytes as the range has become `size`; `overrun` tells when there were none."""
    while size < uint64(1 << 48):
        at, end = state[2], state[3]
        code = (code << uint64(16)) | (uint64(data[at]) << uint64(8) if at < end else uint64(0))
        code |= uint64(data[at + uint64(1)]) if at + uint64(1) < end else uint64(0)
        state[2] = at + uint64(2)
        size <<= uint64(16)
    state[0] = code
    state[1] = size


@kernel
def overrun(state):  # type: ignore[no-untyped-def]
    """Whether more was read than any writer wrote: each two bytes read were written, but for the first eight."""
    return state[2] > state[3] + uint64(8)


@kernel
def get_bits(state, data, bits):  # type: ignore[no-untyped-def]
    unit = state[1] >> bits
    value = min(state[0] // unit, (uint64(1) << bits) - uint64(1))
    narrow(state, data, min(state[0] - unit * value, unit - uint64(1)), unit)
    return value


@kernel
def get_flag(state, data, chance):  # type: ignore[no-untyped-def]
    size = (state[1] >> uint64(16)) * chance
    if state[0] < size:
        narrow(state, data, state[0], size)
        return True
    narrow(state, data, state[0] - size, state[1] - size)
    return False


@kernel
def get_number(state, data, numbers, context):  # type: ignore[no-untyped-def]
    """The next number; 2^32 or more only in data that no writer wrote."""
    length = uint64(0)
    while length < uint64(32):
        chance = numbers[context, length]
        more = get_flag(state, data, chance)
        numbers[context, length] = adapted(chance, more)
        if not more:
            break
        length += uint64(1)
    value = uint64(1)
    if length > uint64(16):
        value = (value << (length - uint64(16))) | get_bits(state, data, length - uint64(16))
        length = uint64(16)
    return ((value << length) | get_bits(state, data, length)) - uint64(1)


@kernel
def get_entry(state, data, heads, classes, at):  # type: ignore[no-untyped-def]
    """The number of the entry that comes next in list `at`, or NONE for its escape."""
    unit = (state[1] >> uint64(32)) * uint64(heads[at, 0])
    code = state[0]
    weight = code // unit
    if weight >= uint64(heads[at, 1]):
        begin = unit * uint64(heads[at, 1])
        narrow(state, data, code - begin, state[1] - begin)
        return NONE
    begin, k = uint64(0), uint64(heads[at, 2])
    while weight >= uint64(classes[k, 0]):
        begin = uint64(classes[k, 0])
        k += uint64(1)
    q = uint64(classes[k, 1]) & uint64(31)
    i = (weight - begin) >> q
    narrow(state, data, code - (begin + (i << q)) * unit, unit << q)
    return np.uint32((uint64(classes[k, 1]) >> uint64(5)) + i)


@kernel
def get_symbol(state, data, heads, classes, symbols, at):  # type: ignore[no-untyped-def]
    """The next symbol by list `at` and those it goes on with; NONE after the escape of the last."""
    while at != NONE:
        entry = get_entry(state, data, heads, classes, at)
        if entry != NONE:
            return symbols[entry]
        at = heads[at, 3]
    return NONE


@kernel
def find(table, high, low):  # type: ignore[no-untyped-def]
    """The value of key (`high`, `low`) in an open hash table, or NONE; both parts are under 2^21, the value under 2^22.

    table: uint64, a power of two of them, `(high << 21 | low + 1) << 22 | value` or 0 where free.
    """
    key = (uint64(high) << uint64(21)) | (uint64(low) + uint64(1))
    mask = uint64(table.size - 1)
    slot = hashed(key) & mask
    while table[slot] != 0:
        if table[slot] >> uint64(22) == key:
            return np.uint32(table[slot] & uint64(0x3FFFFF))
        slot = (slot + uint64(1)) & mask
    return NONE


@kernel
def hashed(key):  # type: ignore[no-untyped-def]
    return (key * uint64(0x9E3779B97F4A7C15)) >> uint64(32)


@kernel
def fill_table(highs, lows, values, table):  # type: ignore[no-untyped-def]
    """Put every key into `table`, which is zeros; of equal keys the last holds. Returns how many keys were equal."""
    mask, equal = uint64(table.size - 1), 0
    for i in range(highs.size):
        key = (uint64(highs[i]) << uint64(21)) | (uint64(lows[i]) + uint64(1))
        slot = hashed(key) & mask
        while table[slot] != 0 and table[slot] >> uint64(22) != key:
            slot = (slot + uint64(1)) & mask
        equal += table[slot] != 0
        table[slot] = (key << uint64(22)) | uint64(values[i])
    return equal


@kernel
def put_entry(state, out, heads, weights, at, entry):  # type: ignore[no-untyped-def]
    """Entry number `entry` of list `at`, or NONE for its escape; `weights` by entry: the weight before it << 5 | q."""
    unit = (state[1] >> uint64(32)) * uint64(heads[at, 0])
    if entry == NONE:
        begin = unit * uint64(heads[at, 1])
        put(state, out, begin, state[1] - begin)
    else:
        weight = uint64(weights[entry])
        put(state, out, unit * (weight >> uint64(5)), unit << (weight & uint64(31)))


@kernel
def put_symbol(state, out, heads, weights, table, at, symbol):  # type: ignore[no-untyped-def]
    """A symbol by list `at` and those it goes on with; a symbol in none of them ends with the last one's escape."""
    while at != NONE:
        entry = find(table, at, symbol)
        put_entry(state, out, heads, weights, at, entry)
        if entry != NONE:
            return
        at = heads[at, 3]
