"""A range coder over lists, flags and adaptive numbers, for kernels/context*.py. Imports numpy, numba and kernels only.

Range coding (Martin 1979) on 64 bits: `range` stays at or above 2^48, bytes move two at a time, and a carry runs back
into the bytes already written. A reader takes what lies after the end for zeros.

A coder's state is a uint64[4]: low (of a writer) or code (of a reader), range, bytes written or read, end of the bytes.
A **list** is a record of 32-bit words that begins at a multiple of UNIT words and is named by that multiple, its
**place**: floor(2^32 / total weight); the weight of its entries << 5 | how many classes; the place of the list to go on
with after an escape, or NONE; the weight before the escape, which is more than that of the entries where there are
recent tokens to choose from; for each class, the weight up to its end << 5 | q; then the symbols, by class. Each entry
of a class weighs 2^q. All that a look-up needs lies together, since a line of memory costs more than its words.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel

NONE = np.uint32(0xFFFFFFFF)  # no list, no entry
FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
UNIT = 4  # words
HEAD = 4  # words of a list before its classes
MOST_PROBES = 1024  # of a hash table half full; at random they stay under a hundred


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
def get_symbol(state, data, lists, place):  # type: ignore[no-untyped-def]
    """The next symbol by the list at `place` and those it goes on with; NONE after all, and for a recent token."""
    while place != NONE:
        at = uint64(place) * uint64(UNIT)
        unit = (state[1] >> uint64(32)) * uint64(lists[at])
        held, code = uint64(lists[at + uint64(1)]), state[0]
        weight = code // unit
        if weight < held >> uint64(5):
            begin, k, i = uint64(0), at + uint64(HEAD), uint64(0)
            while weight >= uint64(lists[k]) >> uint64(5):
                i += ((uint64(lists[k]) >> uint64(5)) - begin) >> (uint64(lists[k]) & uint64(31))
                begin = uint64(lists[k]) >> uint64(5)
                k += uint64(1)
            q = uint64(lists[k]) & uint64(31)
            among = (weight - begin) >> q
            narrow(state, data, code - (begin + (among << q)) * unit, unit << q)
            return lists[at + uint64(HEAD) + (held & uint64(31)) + i + among]
        begin = unit * uint64(lists[at + uint64(3)])
        if code < begin:
            return NONE
        narrow(state, data, code - begin, state[1] - begin)
        place = lists[at + uint64(2)]
    return NONE


@kernel
def list_places(lists, places, begins):  # type: ignore[no-untyped-def]
    """How many lists lie one after the other in `lists`; of each its place and its first entry, and, last, the end."""
    at, n = uint64(0), 0
    begins[0] = 0
    while at < uint64(lists.size):
        places[n] = at // uint64(UNIT)
        size, before = uint64(0), uint64(0)
        n_classes = uint64(lists[at + uint64(1)]) & uint64(31)
        for k in range(at + uint64(HEAD), at + uint64(HEAD) + n_classes):
            held = uint64(lists[k]) >> uint64(5)
            size += (held - before) >> (uint64(lists[k]) & uint64(31))
            before = held
        n += 1
        begins[n] = begins[n - 1] + np.int64(size)
        at += (uint64(HEAD) + n_classes + size + uint64(UNIT - 1)) // uint64(UNIT) * uint64(UNIT)
    return n


@kernel
def hashed(high, low):  # type: ignore[no-untyped-def]
    """(Key, where to look for it first, to be masked); high is under 2^22, low under 2^20 - 1."""
    key = (uint64(high) << uint64(20)) | (uint64(low) + uint64(1))
    return key, (key * uint64(0x9E3779B97F4A7C15)) >> uint64(32)


@kernel
def find(table, high, low):  # type: ignore[no-untyped-def]
    """The value, under 2^22, of key (`high`, `low`) in an open hash table, or NONE.

    table: uint64, a power of two of them, `(high << 20 | low + 1) << 22 | value` or 0 where free.
    """
    key, slot = hashed(high, low)
    mask = uint64(table.size - 1)
    slot &= mask
    while table[slot] != 0 and table[slot] >> uint64(22) != key:
        slot = (slot + uint64(1)) & mask
    return np.uint32(table[slot] & uint64(0x3FFFFF)) if table[slot] else NONE


@kernel
def fill_table(highs, lows, values, table):  # type: ignore[no-untyped-def]
    """Put every key into `table`, which is zeros; of equal keys the last holds.

    False where one is over MOST_PROBES places from where it is looked for first: no text makes such keys.
    """
    mask = uint64(table.size - 1)
    for i in range(highs.size):
        key, slot = hashed(highs[i], lows[i])
        slot &= mask
        probes = 0
        while table[slot] != 0 and table[slot] >> uint64(22) != key:
            slot = (slot + uint64(1)) & mask
            probes += 1
            if probes > MOST_PROBES:
                return False
        table[slot] = (key << uint64(22)) | uint64(values[i])
    return True


@kernel
def put_entry(state, out, lists, place, weight):  # type: ignore[no-untyped-def]
    """An entry of the list at `place`; weight: the weight before the entry << 5 | q."""
    unit = (state[1] >> uint64(32)) * uint64(lists[uint64(place) * uint64(UNIT)])
    put(state, out, unit * (uint64(weight) >> uint64(5)), unit << (uint64(weight) & uint64(31)))


@kernel
def put_escape(state, out, lists, place):  # type: ignore[no-untyped-def]
    at = uint64(place) * uint64(UNIT)
    begin = (state[1] >> uint64(32)) * uint64(lists[at]) * uint64(lists[at + uint64(3)])
    put(state, out, begin, state[1] - begin)


@kernel
def put_recent(state, out, lists, place):  # type: ignore[no-untyped-def]
    """That a recent token follows."""
    at = uint64(place) * uint64(UNIT)
    unit = (state[1] >> uint64(32)) * uint64(lists[at])
    held = uint64(lists[at + uint64(1)]) >> uint64(5)
    put(state, out, unit * held, unit * (uint64(lists[at + uint64(3)]) - held))


@kernel
def put_symbol(state, out, lists, weights, table, place, symbol):  # type: ignore[no-untyped-def]
    """A symbol by the list at `place` and those it goes on with; after the last one's escape if it is in none."""
    while place != NONE:
        entry = find(table, place, symbol)
        if entry != NONE:
            put_entry(state, out, lists, place, weights[entry])
            return
        put_escape(state, out, lists, place)
        place = lists[uint64(place) * uint64(UNIT) + uint64(2)]
