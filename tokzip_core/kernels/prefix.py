"""Encode and decode whole columns with a prefix-class code (coders/prefix.py). Imports numpy, coders, kernels.

Bits are numbered from the lowest bit of the first byte. All arithmetic is uint64: numba's mixes of signed and
unsigned are slow.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from tokzip_core.coders.prefix import ESCAPE, NO_ENTRY, UNASSIGNED
from tokzip_core.columns import MAX_ID
from tokzip_core.kernels import inline, kernel
from tokzip_core.kernels.lookup import entry_of
from tokzip_core.kernels.words import load, prefetch, prefetch_all, store

LANES = 3  # rows decoded side by side: one row's chain of lookups hides behind the others'; more want registers
CHUNK = 1 << 20  # room for the tokens of one turn of decoding, at worst: most of what is used of it stays in a L2 cache
ESCAPED_BITS = 31
MOST_BITS = 56  # that fit behind 7 others
AHEAD = 256  # tokens that the encoder has fetched from memory before it needs them
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


@inline
def join(a, b, c):  # type: ignore[no-untyped-def]
    """The codes of three entries (code << 8 | length) one after the other, and the length of all."""
    eight, low = uint64(8), uint64(63)
    two = a + b  # its low bits are the length of both
    bits = a >> eight | (b >> eight) << (a & low) | (c >> eight) << (two & low)
    return bits, (two + c) & uint64(255)


@inline
def append_short(out, at, word, filled, bits, length):  # type: ignore[no-untyped-def]
    """`append` for a length up to MOST_BITS."""
    word |= bits << filled
    filled += length
    store(out, at, word)
    return at + (filled >> uint64(3)), word >> (filled & uint64(56)), filled & uint64(7)


@kernel
def encode_rows(values, starts, ends, entries, ids, id_entries, escape, out, out_ends):  # type: ignore[no-untyped-def]
    """Write the blobs of rows `values[starts[i]:ends[i]]` into `out`, and each blob's end into `out_ends`.

    values: uint32; entries: uint32[2^d + 1], by id, code << 8 | length, NO_ENTRY at 2^d; ids, id_entries, escape: of
    every id and of the escape, code << 5 | length. `out` (uint8) has room for 8 bytes a token and 16 more. Returns
    whether all values are ids. The last two tokens of a row are not taken one by one, as no processor can foretell how
    many there will be.
    """
    top, five, low, most = uint64(entries.size - 1), uint64(5), uint64(31), uint64(MOST_BITS)
    zero, one, two, three, seven = uint64(0), uint64(1), uint64(2), uint64(3), uint64(7)
    if values.size > entries.size:
        prefetch_all(entries)
    at = zero
    for row in range(starts.size):
        begin, word, filled = at, zero, zero
        i, end = uint64(starts[row]), uint64(ends[row])
        stop = end - min(end, two)
        while i < end:
            while i < stop:
                prefetch(values, i + uint64(AHEAD))
                first, second, third = values[i], values[i + one], values[i + two]
                if (first | second | third) >= top:  # as 2^d is a power of two, none of them is, or one may be
                    break
                bits, length = join(uint64(entries[first]), uint64(entries[second]), uint64(entries[third]))
                if length > most:
                    break
                at, word, filled = append_short(out, at, word, filled, bits, length)
                i += three
            if i >= stop:
                first, second = uint64(values[min(i, end - one)]), uint64(values[end - one])
                a, b = uint64(entries[min(first, top)]), uint64(entries[min(second, top)])
                bits, length = join(a if i < end else zero, b if i + one < end else zero, zero)
                if length <= most:
                    at, word, filled = append_short(out, at, word, filled, bits, length)
                    break
            entry = uint64(entries[min(uint64(values[i]), top)])
            if entry != uint64(NO_ENTRY):
                at, word, filled = append_short(out, at, word, filled, entry >> uint64(8), entry & uint64(255))
                i += one
                continue
            if values[i] > MAX_ID:
                return False
            entry = uint64(entry_of(values[i], ids, id_entries))
            if entry != 0:
                at, word, filled = append(out, at, word, filled, entry >> five, entry & low)
            else:
                at, word, filled = append(out, at, word, filled, escape >> five, escape & low)
                at, word, filled = append(out, at, word, filled, uint64(values[i]), uint64(ESCAPED_BITS))
            i += one
        at += filled + seven >> three
        while at > begin and out[at - one] == 0:
            at -= one
        out_ends[row] = at
    return True


@inline
def symbol(word, lengths, ranks, tokens):  # type: ignore[no-untyped-def]
    """The length of the code that `word` begins with, and its token; ESCAPE or UNASSIGNED where it is no token's."""
    slot = word & uint64(255)
    size = uint64(lengths[slot])
    return size, tokens[uint64(ranks[slot]) + ((word & ((uint64(1) << size) - uint64(1))) >> uint64(8))]


@inline
def bits_at(data, bit, end):  # type: ignore[no-untyped-def]
    """57 bits or more from `bit` on, zeros for those from `end` on."""
    word = load(data, bit >> uint64(3)) >> (bit & uint64(7))
    return word & ((uint64(1) << min(end - bit, uint64(63))) - uint64(1))


@inline
def symbols(data, lengths, ranks, tokens, load_of, bit, end, out, at):  # type: ignore[no-untyped-def]
    """Decode as many tokens as `load_of` has items to `out[at:]`, as if the row had no end.

    Returns the bit after them, and a number under 0 where that is beyond `end` or one of them is no token.
    """
    word = load(data, bit >> uint64(3)) >> (bit & uint64(7))
    size, a = symbol(word, lengths, ranks, tokens)
    bit += size
    word >>= size
    size, b = symbol(word, lengths, ranks, tokens)
    bit += size
    out[at] = a
    out[at + uint64(1)] = b
    signs = a | b
    if len(load_of) == 3:
        size, c = symbol(word >> size, lengths, ranks, tokens)
        bit += size
        out[at + uint64(2)] = c
        signs |= c
    return bit, int64(end - bit) | int64(signs)


@kernel
def decode_rows(  # type: ignore[no-untyped-def]
    data, starts, ends, lengths, ranks, tokens, ids, id_entries, shortest, load_of, out, out_ends
):
    """Decode the blobs `data[starts[i]:ends[i]]` into `out` (int32), and each row's end in it into `out_ends`.

    data: uint8, with 16 bytes after the last row; bounds as validated by the caller; lengths, ranks: uint8[256] and
    uint32[256], of the codes of a slot, and the first rank; tokens: int32, by rank, negative for ESCAPE and
    UNASSIGNED; shortest: the least code length; load_of: a tuple of as many items as there are codes to a load, 2 or
    3: its type makes the number a constant. Returns (fault, row of the fault); FULL where `out` may have no room for
    that row.

    Rows are taken in turns of up to CHUNK tokens. In a turn, LANES lanes each decode a run of rows of their own, side
    by side, one after the other into a part of the scratch space; then the parts are moved together into `out`.
    """
    zero, one, three, step = uint64(0), uint64(1), uint64(3), uint64(len(load_of))
    rows = uint64(starts.size)
    most = zero
    for row in range(rows):  # not from the size of `data`: rows may repeat
        most += uint64(8) * uint64(ends[row] - starts[row]) // uint64(shortest) + uint64(ROW_ROOM)
    scratch = np.empty(min(uint64(CHUNK), most), np.int32)
    bits, stops, places = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    begins, row_of, last_of = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    done, filled = zero, zero
    while done < rows:
        last, need = done, zero
        while last < rows:
            room = uint64(8) * uint64(ends[last] - starts[last]) // uint64(shortest) + uint64(ROW_ROOM)
            if last > done and need + room > uint64(CHUNK):
                break
            need += room
            last += one
        target = scratch
        if need > uint64(CHUNK):  # one row, larger than the scratch space
            if filled + need > uint64(out.size):
                return FULL, np.int64(done)
            target = out[filled:]
        row, part = done, zero
        for lane in range(LANES):
            begins[lane], places[lane] = part, part
            bits[lane], stops[lane], row_of[lane] = zero, zero, row - one  # at the end of the row before its first
            while row < last and part < need * uint64(lane + 1) // uint64(LANES):
                part += uint64(8) * uint64(ends[row] - starts[row]) // uint64(shortest) + uint64(ROW_ROOM)
                row += one
            last_of[lane] = row
        attention = -1  # a bit for each lane that needs some
        while True:
            running, runner = 0, 0
            for lane in range(LANES):
                bit, end, at, row = bits[lane], stops[lane], places[lane], row_of[lane]
                if attention >> lane & 1 and row != last_of[lane]:
                    while bit < end:  # near the row's end, or near what is no token: one token at a time
                        size, token = symbol(bits_at(data, bit, end), lengths, ranks, tokens)
                        bit += size
                        if token == UNASSIGNED:
                            return NO_CODE, np.int64(row)
                        if token == ESCAPE:
                            token = np.int32(bits_at(data, bit, max(bit, end)) & uint64(0x7FFFFFFF))
                            bit += uint64(ESCAPED_BITS)
                            if entry_of(np.uint32(token), ids, id_entries) != 0:
                                return KNOWN_ESCAPED, np.int64(row)
                        target[at] = token
                        at += one
                        if bit + uint64(64) < end:
                            break
                    if bit >= end:
                        if stops[lane] != zero:
                            out_ends[row] = at
                        row += one
                        while row < last_of[lane] and starts[row] == ends[row]:
                            out_ends[row] = at
                            row += one
                        bit = end = zero
                        if row < last_of[lane]:
                            final = uint64(ends[row]) - one
                            if data[final] == 0:
                                return ZERO_END, np.int64(row)
                            bit, end = uint64(starts[row]) << three, (final << three) + bit_length(data[final])
                    bits[lane], stops[lane], places[lane], row_of[lane] = bit, end, at, row
                if bit < end:
                    running, runner = running + 1, lane
            if running == 0:
                break
            if running < LANES:
                b0, p0 = bits[runner], places[runner]
                while True:
                    n0, s0 = symbols(data, lengths, ranks, tokens, load_of, b0, stops[runner], target, p0)
                    if s0 < 0:
                        break
                    b0 = n0
                    p0 += step
                bits[runner], places[runner] = b0, p0
                attention = 1 << runner
                continue
            b0, b1, b2 = bits[0], bits[1], bits[2]
            e0, e1, e2 = stops[0], stops[1], stops[2]
            p0, p1, p2 = places[0], places[1], places[2]
            while True:
                n0, s0 = symbols(data, lengths, ranks, tokens, load_of, b0, e0, target, p0)
                n1, s1 = symbols(data, lengths, ranks, tokens, load_of, b1, e1, target, p1)
                n2, s2 = symbols(data, lengths, ranks, tokens, load_of, b2, e2, target, p2)
                if s0 | s1 | s2 < 0:
                    break
                b0, b1, b2 = n0, n1, n2
                p0 += step
                p1 += step
                p2 += step
            bits[0], bits[1], bits[2] = b0, b1, b2
            places[0], places[1], places[2] = p0, p1, p2
            attention = int64(s0 < 0) | int64(s1 < 0) << 1 | int64(s2 < 0) << 2
        total = zero
        for lane in range(LANES):
            total += places[lane] - begins[lane]
        if filled + total > uint64(out.size):
            return FULL, np.int64(done)
        row = done
        for lane in range(LANES):
            begin, size = begins[lane], places[lane] - begins[lane]
            for i in range(size):  # numba makes faster code of this than of slices
                out[filled + i] = target[begin + i]
            while row < last_of[lane]:
                out_ends[row] += filled - begin
                row += one
            filled += size
        done = last
    return OK, np.int64(0)
