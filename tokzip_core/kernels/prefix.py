"""Encode and decode whole columns with a prefix-class code (coders/prefix.py). Imports numpy, coders, kernels.

Bits are numbered from the lowest bit of the first byte. All arithmetic is uint64: numba's mixes of signed and
unsigned are slow. A lookup entry is `value << 5 | length`.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.coders.prefix import ESCAPE, TRIPLE_LENGTH, UNASSIGNED
from tokzip_core.kernels import kernel
from tokzip_core.kernels.lookup import entry_of
from tokzip_core.kernels.words import load, store

LANES = 4  # rows decoded side by side, so that one row's chain of lookups hides behind the others'
CHUNK = 1 << 19  # room for the tokens of one turn of decoding, at worst: what is used of it stays in the L2 cache
ESCAPED_BITS = 31
ROW_ROOM = 6  # tokens that may be written past a row's last: two turns of three, from a bad blob

OK, ZERO_END, NO_CODE, KNOWN_ESCAPED, FULL = 0, 1, 2, 3, -1

_BIT_LENGTH = np.array([i.bit_length() for i in range(256)], np.uint64)


@kernel
def bit_length(byte):  # type: ignore[no-untyped-def]
    """The place of the highest 1 in a byte, from 1; 0 for none."""
    return _BIT_LENGTH[byte]


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
    one, two, three = uint64(1), uint64(2), uint64(3)
    at = uint64(0)
    for row in range(starts.size):
        begin, word, filled = at, uint64(0), uint64(0)
        i, end = uint64(starts[row]), uint64(ends[row])
        while i < end:
            while triple and i + three <= end:
                first, second, third = uint64(values[i]), uint64(values[i + one]), uint64(values[i + two])
                if max(max(first, second), third) >= top:
                    break
                a, b, c = uint64(entries[first]), uint64(entries[second]), uint64(entries[third])
                if a == 0 or b == 0 or c == 0:
                    break
                length = a & low
                bits = a >> five | (b >> five) << length
                length += b & low
                bits |= (c >> five) << length
                at, word, filled = append(out, at, word, filled, bits, length + (c & low))
                i += three
            if i == end:
                break
            entry = uint64(entries[min(uint64(values[i]), top)])
            if entry == 0:
                entry = uint64(entry_of(values[i], ids, id_entries))
            if entry != 0:
                at, word, filled = append(out, at, word, filled, entry >> five, entry & low)
            else:
                at, word, filled = append(out, at, word, filled, escape >> five, escape & low)
                at, word, filled = append(out, at, word, filled, uint64(values[i]), uint64(ESCAPED_BITS))
            i += one
        if filled > 0:
            at += uint64(1)
        while at > begin and out[at - uint64(1)] == 0:
            at -= uint64(1)
        out_ends[row] = at


@kernel
def decode_three(data, slots, tokens, bit, out, at):  # type: ignore[no-untyped-def]
    """Decode three tokens at `bit` into `out[at : at + 3]`; return the bit after them, and their bits or-ed."""
    one, five, eight, low, byte = uint64(1), uint64(5), uint64(8), uint64(31), uint64(255)
    word = load(data, bit >> uint64(3)) >> (bit & uint64(7))
    entry = uint64(slots[word & byte])
    first = entry & low
    a = tokens[(entry >> five) + ((word & ((one << first) - one)) >> eight)]
    word >>= first
    entry = uint64(slots[word & byte])
    second = entry & low
    b = tokens[(entry >> five) + ((word & ((one << second) - one)) >> eight)]
    word >>= second
    entry = uint64(slots[word & byte])
    third = entry & low
    c = tokens[(entry >> five) + ((word & ((one << third) - one)) >> eight)]
    out[at] = a
    out[at + one] = b
    out[at + uint64(2)] = c
    return bit + first + second + third, a | b | c


@kernel
def decode_rows(data, starts, ends, slots, tokens, ids, id_entries, shortest, triple, out, out_ends):  # type: ignore[no-untyped-def]
    """Decode the blobs `data[starts[i]:ends[i]]` into `out` (int32), and each row's end in it into `out_ends`.

    data: uint8, with 16 bytes after the last row; bounds as validated by the caller; slots: uint32[256], entries of
    first ranks; tokens: int32, by rank, negative for ESCAPE and UNASSIGNED; shortest: the least code length. Returns
    (fault, row of the fault); FULL where `out` may have no room for that row.

    Rows are taken in turns of up to CHUNK tokens. In a turn, each of LANES lanes decodes a row of its own into
    scratch space, at a place that follows from the blobs' sizes; then the rows are moved together into `out`.
    """
    zero, one, two, three, four = uint64(0), uint64(1), uint64(2), uint64(3), uint64(4)
    five, seven, eight, low, byte = uint64(5), uint64(7), uint64(8), uint64(31), uint64(255)
    most = uint64(3 * TRIPLE_LENGTH)
    rows = uint64(starts.size)
    scratch = np.empty(CHUNK, np.int32)
    place = np.empty(starts.size, np.uint64)
    lanes = np.empty(4 * LANES, np.uint64)  # of each: the next bit, the bit where its row ends, place of output, row
    done, filled = zero, zero
    while done < rows:
        last, need = done, zero
        while last < rows:
            room = uint64(8 * (ends[last] - starts[last]) // shortest + ROW_ROOM)
            if last > done and need + room > uint64(CHUNK):
                break
            place[last] = need
            need += room
            last += one
        target = scratch
        if need > uint64(CHUNK):  # one row, larger than the scratch space
            if filled + need > uint64(out.size):
                return FULL, np.int64(done)
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
                    lanes[lane + one] = (final << three) + bit_length(data[final])
                    lanes[lane + two], lanes[lane + three] = place[following], following
                    following += one
                else:
                    used -= four
                    for i in range(four):
                        lanes[lane + i] = lanes[used + i]
            if used == 0:
                break
            lane = zero
            while triple and lane < used and lanes[lane] + most <= lanes[lane + one]:
                lane += four
            if lane == uint64(4 * LANES):
                # Three tokens of each lane in turn, until the three longest codes may not fit in what is left of one.
                b0, b1, b2, b3 = lanes[0], lanes[4], lanes[8], lanes[12]
                f0, f1, f2, f3 = lanes[1] - most, lanes[5] - most, lanes[9] - most, lanes[13] - most
                a0, a1, a2, a3 = lanes[2], lanes[6], lanes[10], lanes[14]
                count = zero
                while b0 <= f0 and b1 <= f1 and b2 <= f2 and b3 <= f3:
                    n0, s0 = decode_three(data, slots, tokens, b0, target, a0 + count)
                    n1, s1 = decode_three(data, slots, tokens, b1, target, a1 + count)
                    n2, s2 = decode_three(data, slots, tokens, b2, target, a2 + count)
                    n3, s3 = decode_three(data, slots, tokens, b3, target, a3 + count)
                    if s0 | s1 | s2 | s3 < 0 or n0 == b0 or n1 == b1 or n2 == b2 or n3 == b3:
                        break
                    b0, b1, b2, b3 = n0, n1, n2, n3
                    count += three
                lanes[0], lanes[4], lanes[8], lanes[12] = b0, b1, b2, b3
                lanes[2], lanes[6], lanes[10], lanes[14] = a0 + count, a1 + count, a2 + count, a3 + count
                if b0 > f0 or b1 > f1 or b2 > f2 or b3 > f3:
                    continue
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
        total = zero
        for row in range(done, last):
            total += uint64(out_ends[row])
        if filled + total > uint64(out.size):
            return FULL, np.int64(done)
        for row in range(done, last):
            size, begin = uint64(out_ends[row]), place[row]
            if need <= uint64(CHUNK):
                for i in range(size):
                    out[filled + i] = scratch[begin + i]
            filled += size
            out_ends[row] = filled
        done = last
    return OK, np.int64(0)
