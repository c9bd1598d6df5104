"""Encode and decode whole columns with a prefix-class code (coders/prefix.py). Imports numpy, coders, kernels.

Bits are numbered from the lowest bit of the first byte. All arithmetic is uint64: numba's mixes of signed and
unsigned are slow. A lookup entry is `value << 5 | length`.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.coders.prefix import ESCAPE, UNASSIGNED
from tokzip_core.kernels import kernel
from tokzip_core.kernels.words import load, store

LANES = 4  # rows decoded side by side, so that one row's chain of lookups hides behind the others'
CHUNK = 1 << 17  # room for the tokens of one turn of decoding (int32): small enough to stay in the L2 cache
ESCAPED_BITS = 31

OK, ZERO_END, NO_CODE, KNOWN_ESCAPED = 0, 1, 2, 3

_BIT_LENGTH = np.array([i.bit_length() for i in range(256)], np.uint64)


@kernel
def entry_of(token, ids, id_entries):  # type: ignore[no-untyped-def]
    """The entry of `token` among the rising `ids`, 0 where it is not one of them."""
    low, high = 0, ids.size
    while low < high:
        middle = (low + high) >> 1
        if ids[middle] < token:
            low = middle + 1
        else:
            high = middle
    return id_entries[low] if low < ids.size and ids[low] == token else np.uint32(0)


@kernel
def append(out, at, word, filled, bits, length):  # type: ignore[no-untyped-def]
    """Append `length` bits to the `filled` < 8 bits of `word`; return the new (at, word, filled)."""
    word |= bits << filled
    filled += length
    store(out, at, word)
    half = (filled >> uint64(3)) << uint64(2)  # shifted twice: a shift by all 64 bits is undefined
    return at + (filled >> uint64(3)), (word >> half) >> half, filled & uint64(7)


@kernel
def encode_rows(values, starts, ends, entries, ids, id_entries, escape, triple, out, out_ends):  # type: ignore[no-untyped-def]
    """Write the blobs of rows `values[starts[i]:ends[i]]` into `out`, and each blob's end into `out_ends`.

    values: uint32; entries: uint32[d + 1], by id, zero at d and where an id has no code; ids, id_entries: every id
    with its entry; escape: uint64 entry; triple: whether three codes fit in 57 bits. `out` (uint8) has room for
    8 bytes a token and 16 more.
    """
    top, five, low = uint64(entries.size - 1), uint64(5), uint64(31)
    at = uint64(0)
    for row in range(starts.size):
        begin, word, filled = at, uint64(0), uint64(0)
        i, end = uint64(starts[row]), uint64(ends[row])
        while i < end:
            if i + uint64(3) <= end:
                a = uint64(entries[min(uint64(values[i]), top)])
                b = uint64(entries[min(uint64(values[i + uint64(1)]), top)])
                if a != 0 and b != 0:
                    length = a & low
                    bits = (a >> five) | ((b >> five) << length)
                    length += b & low
                    i += uint64(2)
                    if triple:
                        c = uint64(entries[min(uint64(values[i]), top)])
                        if c != 0:
                            bits |= (c >> five) << length
                            length += c & low
                            i += uint64(1)
                    at, word, filled = append(out, at, word, filled, bits, length)
                    continue
            token = values[i]
            entry = uint64(entry_of(token, ids, id_entries))
            i += uint64(1)
            if entry != 0:
                at, word, filled = append(out, at, word, filled, entry >> five, entry & low)
            else:
                at, word, filled = append(out, at, word, filled, escape >> five, escape & low)
                at, word, filled = append(out, at, word, filled, uint64(token), uint64(ESCAPED_BITS))
        if filled > 0:
            at += uint64(1)
        while at > begin and out[at - uint64(1)] == 0:
            at -= uint64(1)
        out_ends[row] = at


@kernel
def decode_rows(data, starts, ends, slots, tokens, ids, id_entries, shortest, triple, out, out_ends):  # type: ignore[no-untyped-def]
    """Decode the blobs `data[starts[i]:ends[i]]` into `out` (int32), and each row's end in it into `out_ends`.

    data: uint8, with 16 bytes after the last row; bounds as validated by the caller; slots: uint32[256], entries of
    first ranks; tokens: int32, by rank, negative for ESCAPE and UNASSIGNED; shortest: the least code length; `out`
    has room for one token for every `shortest` bits of blob, and 3 more a row. Returns (fault, row of the fault).

    Rows are taken in turns of up to CHUNK tokens. In a turn, each of LANES lanes decodes a row of its own into
    scratch space, at a place that follows from the blobs' sizes; then the rows are moved together into `out`.
    """
    zero, one, two, three, four = uint64(0), uint64(1), uint64(2), uint64(3), uint64(4)
    five, seven, eight, low, byte = uint64(5), uint64(7), uint64(8), uint64(31), uint64(255)
    rows = uint64(starts.size)
    scratch = np.empty(min(CHUNK, out.size), np.int32)
    place = np.empty(starts.size, np.uint64)
    lanes = np.empty(4 * LANES, np.uint64)  # of each: the next bit, the bit where its row ends, place of output, row
    done, filled = zero, zero
    while done < rows:
        last, need = done, zero
        while last < rows:
            room = uint64(8 * (ends[last] - starts[last]) // shortest + 3)
            if last > done and need + room > uint64(CHUNK):
                break
            place[last] = need
            need += room
            last += one
        target = scratch
        if need > uint64(CHUNK):  # one row, larger than the scratch space
            target, place[done] = out, filled
        for row in range(done, last):
            out_ends[row] = 0
        for lane in range(0, 4 * LANES, 4):  # empty: at the end of no row
            lanes[lane], lanes[lane + 1], lanes[lane + 3] = zero, zero, rows
        used, following = uint64(4 * LANES), done
        while True:
            lane = zero
            while lane < used:  # for each lane at the end of its row: note the length; take the next row or give up
                if lanes[lane] < lanes[lane + one]:
                    lane += four
                    continue
                row = lanes[lane + three]
                if row < rows:
                    out_ends[row] = lanes[lane + two] - place[row]
                while following < last and starts[following] == ends[following]:
                    following += one
                if following < last:
                    final = uint64(ends[following]) - one
                    if data[final] == 0:
                        return ZERO_END, np.int64(following)
                    lanes[lane] = uint64(starts[following]) << three
                    lanes[lane + one] = (final << three) + _BIT_LENGTH[data[final]]
                    lanes[lane + two], lanes[lane + three] = place[following], following
                    following += one
                else:
                    used -= four
                    for i in range(four):
                        lanes[lane + i] = lanes[used + i]
            if used == 0:
                break
            lane = zero
            # Without a branch or a call, until a lane needs care: two or three tokens of each lane in turn.
            while True:
                bit, left = lanes[lane], lanes[lane + one] - lanes[lane]
                at = lanes[lane + two]
                word = load(data, bit >> three) >> (bit & seven)
                if left < uint64(64):
                    word &= (one << left) - one
                entry = uint64(slots[word & byte])
                size = entry & low
                a = tokens[(entry >> five) + ((word & ((one << size) - one)) >> eight)]
                word >>= size
                entry = uint64(slots[word & byte])
                second = entry & low
                b = tokens[(entry >> five) + ((word & ((one << second) - one)) >> eight)]
                target[at] = a
                target[at + one] = b
                signs = a | b
                count = one + uint64(size < left)
                size += second
                if triple:
                    word >>= second
                    entry = uint64(slots[word & byte])
                    third = entry & low
                    c = tokens[(entry >> five) + ((word & ((one << third) - one)) >> eight)]
                    target[at + two] = c
                    signs |= c
                    count += uint64(size < left)
                    size += third
                if signs < 0:
                    break
                lanes[lane] = bit + size
                lanes[lane + two] = at + count
                if size - one >= left - one:  # at the end of the row, or, as 0 - 1 is large, no code here
                    break
                lane += four
                if lane >= used:
                    lane = zero
            if signs >= 0:
                if size == 0:
                    return NO_CODE, np.int64(lanes[lane + three])
                continue
            # Rare: an escape or an unassigned rank is near; take one token.
            row, end = lanes[lane + three], bit + left
            word = load(data, bit >> three) >> (bit & seven)
            if left < uint64(64):
                word &= (one << left) - one
            bit += uint64(slots[word & byte]) & low
            if a == UNASSIGNED or uint64(slots[word & byte]) == 0:
                return NO_CODE, np.int64(row)
            if a == ESCAPE:
                word = zero
                if bit < end:
                    word = load(data, bit >> three) >> (bit & seven)
                    if end - bit < uint64(ESCAPED_BITS):
                        word &= (one << (end - bit)) - one
                token = np.uint32(word & uint64(0x7FFFFFFF))
                if entry_of(token, ids, id_entries) != 0:
                    return KNOWN_ESCAPED, np.int64(row)
                target[at] = token
                bit += uint64(ESCAPED_BITS)
            lanes[lane], lanes[lane + two] = bit, at + one
        for row in range(done, last):
            size, begin = uint64(out_ends[row]), place[row]
            if need <= uint64(CHUNK):
                for i in range(size):
                    out[filled + i] = scratch[begin + i]
            filled += size
            out_ends[row] = filled
        done = last
    return OK, np.int64(0)
