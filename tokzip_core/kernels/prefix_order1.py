"""Encode and decode whole columns with a prefix-class code for each context (coders/prefix_order1.py).

Imports numpy, coders, kernels. All arithmetic is uint64, as in kernels/prefix.py.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.coders.prefix_order1 import EMITS, NUMBER_BITS, Beside, Event
from tokzip_core.columns import MAX_ID
from tokzip_core.kernels import inline, kernel
from tokzip_core.kernels.lookup import entry_of
from tokzip_core.kernels.popcount import popcount
from tokzip_core.kernels.prefix import AHEAD, ESCAPED_BITS, MOST_BITS, append, append_short, bit_length
from tokzip_core.kernels.words import load, prefetch, prefetch_all, store

PIECE = 1 << 11  # tokens whose codes are looked up at a time
UNKNOWN = 1 << 63
LANES = 6  # rows decoded side by side: more hide more of the latency of lookups, but want registers
CHUNK = 1 << 20  # room for the symbols of one turn of decoding, at worst
ZEROS = 16  # bytes after each row
OK, ZERO_END, NO_CODE, KNOWN_ESCAPED, OPEN_ESCAPE, FULL = 0, 1, 2, 3, 4, -1
_NUMBERS = (1 << NUMBER_BITS) - 1
_NONE, _RESTING = int(Beside.NONE), int(Beside.RESTING)
_END, _OPEN_END, _ESCAPE, _EVENTS = int(Event.END), int(Event.OPEN_END), int(Event.ESCAPE), len(Event)


@inline
def look_up(known, size, cells, entries, escapes, shared, codes, places):  # type: ignore[no-untyped-def]
    """Set `codes[i]` (uint64) to that of `known[i]` after `known[i - 1]`, for 1 <= i < size.

    known: uint32, context << 20 | rank. A code is bits << 6 | length, and UNKNOWN if 31 bits are to follow. Loops that
    do little and do not branch, so that the processor has many lookups under way; then the tokens without a cell.
    places: uint32, to work in; what is computed in 32 bits takes half the time.
    """
    one, five, six, low, top = uint64(1), uint64(5), uint64(6), uint64(31), uint64(63)
    number_bits, numbers, unknown = uint64(NUMBER_BITS), uint64(_NUMBERS), uint64(shared.size - 1)
    words = (unknown >> five) + one
    for i in range(one, size):
        places[i] = (uint64(known[i - one]) >> number_bits) * words + ((uint64(known[i]) & numbers) >> five)
    for i in range(one, size):
        codes[i] = cells[places[i]]
    for i in range(one, size):
        place, cell = uint64(known[i]) & low, codes[i]
        among = (cell >> uint64(32)) + popcount(cell & ((one << place) - one))
        codes[i] = among | (~(cell >> place) & one) << top
    n = uint64(0)
    for i in range(one, size):
        code = codes[i]
        places[n] = i
        n += code >> top
        codes[i] = entries[code & uint64(0xFFFFFFFF)]
    for i in range(n):
        j = uint64(places[i])
        context, rank = uint64(known[j - one]) >> number_bits, uint64(known[j]) & numbers
        code, length = uint64(shared[rank]) >> five, uint64(shared[rank]) & low
        escape, shift = uint64(escapes[context]) >> five, uint64(escapes[context]) & low  # nothing, in no cluster
        codes[j] = (code << shift | escape) << six | (length + shift) | uint64(rank == unknown) << top


@inline
def join(codes, size, fours, lengths):  # type: ignore[no-untyped-def]
    """Set `fours[i]` to the bits of four codes from `codes[4 * i]` on; `lengths[i]` (uint8) is over 56 if they do not
    fit or 31 bits are to follow."""
    one, two, three, four, low, six = uint64(1), uint64(2), uint64(3), uint64(4), uint64(63), uint64(6)
    for i in range(size >> two):
        a, b, c, d = codes[four * i], codes[four * i + one], codes[four * i + two], codes[four * i + three]
        ab, cd = (a & low) + (b & low), (c & low) + (d & low)
        first, second = a >> six | b >> six << (a & low), c >> six | d >> six << (c & low)
        fours[i] = first | second << (ab & low)
        lengths[i] = ab + cd + ((a | b | c | d) >> low << six)


@kernel
def encode_rows(  # type: ignore[no-untyped-def]
    values, ids, id_ranks, ranks, cells, entries, escapes, shared, start, starts, ends, out, out_ends
):
    """Write the blobs of rows `values[starts[i]:ends[i]]` into `out`, and each blob's end into `out_ends`.

    The tables are those of Order1Tables. `out` has room for 12 bytes a token and 16 more. Returns whether all values
    are ids. PIECE tokens are coded at a time: parts of rows, each from a multiple of four on, with one entry before it
    that holds the context of its first token. Its code is empty, and so are those up to the next part.
    """
    zero, one, two, three, six, seven = uint64(0), uint64(1), uint64(2), uint64(3), uint64(6), uint64(7)
    low, unknown, piece, number_bits = uint64(63), uint64(UNKNOWN), uint64(PIECE), uint64(NUMBER_BITS)
    unknown_id = uint64(escapes.size - 1) << number_bits | uint64(shared.size - 1)
    dense, rows = uint64(ranks.size), uint64(starts.size)
    known, places = np.zeros(PIECE, np.uint32), np.empty(PIECE, np.uint32)
    parts, tokens = np.empty(PIECE, np.uint64), np.empty(PIECE, np.uint64)
    codes, fours, lengths = np.empty(PIECE, np.uint64), np.empty(PIECE, np.uint64), np.empty(PIECE, np.uint8)
    if values.size > ranks.size + cells.size + entries.size + shared.size:
        prefetch_all(ranks)
        prefetch_all(cells)
        prefetch_all(entries)
        prefetch_all(shared)
    row, taken, last = zero, zero, zero  # taken: tokens of this row; last: what is known of the one before
    begin, at, word, filled = zero, zero, zero, zero
    while row < rows:
        size, n_parts, reached, reached_taken = zero, zero, row, taken
        while reached < rows and size + one < piece:
            parts[n_parts] = size
            known[size] = last if reached_taken > 0 else uint64(start) << number_bits
            size += one
            first = uint64(starts[reached]) + reached_taken
            more = min(uint64(ends[reached]) - first, piece - size)
            for i in range(more):
                prefetch(values, first + i + uint64(AHEAD))
                token = values[first + i]
                if token < dense:
                    known[size + i] = ranks[token]
                else:
                    found = uint64(entry_of(token, ids, id_ranks))
                    known[size + i] = found - one if found != 0 else unknown_id
            tokens[n_parts] = size + more
            n_parts += one
            size = size + more + three & ~three
            reached_taken += more
            if first + more == uint64(ends[reached]):
                reached, reached_taken = reached + one, zero
        last = uint64(known[tokens[n_parts - one] - one])
        look_up(known, size, cells, entries, escapes, shared, codes, places)
        for part in range(n_parts):
            codes[parts[part]] = zero
            for i in range(tokens[part], tokens[part] + three & ~three):
                codes[i] = zero
        join(codes, size, fours, lengths)
        for part in range(n_parts):
            first = parts[part]
            for i in range(first >> two, tokens[part] + three >> two):
                length = uint64(lengths[i])
                if length <= uint64(MOST_BITS):
                    at, word, filled = append_short(out, at, word, filled, fours[i], length)
                    continue
                for j in range(i << two, (i << two) + uint64(4)):
                    at, word, filled = append(out, at, word, filled, (codes[j] & ~unknown) >> six, codes[j] & low)
                    if codes[j] >= unknown:
                        token = uint64(values[uint64(starts[row]) + taken + (j - first - one)])
                        if token > uint64(MAX_ID):
                            return False
                        at, word, filled = append(out, at, word, filled, token, uint64(ESCAPED_BITS))
            if row < reached:
                at += filled + seven >> three
                while at > begin and out[at - one] == 0:
                    at -= one
                out_ends[row] = at
                begin, word, filled = at, zero, zero
                row, taken = row + one, zero
        taken = reached_taken
    return True


@kernel
def two_steps(data, slots, symbols, bit, context, out, at):  # type: ignore[no-untyped-def]
    """Decode two symbols at `bit` in a context (times 256) into `out` from `at` on; return (bit, context, at) then."""
    one, five, eight, low, byte = uint64(1), uint64(5), uint64(8), uint64(31), uint64(255)
    to_context, contexts, emits = uint64(NUMBER_BITS - 8), uint64(2047 << 8), uint64(31)
    word = load(data, bit >> uint64(3)) >> (bit & uint64(7))
    slot = uint64(slots[context | word & byte])
    first = slot & low
    symbol = uint64(symbols[(slot >> five) + ((word & ((one << first) - one)) >> eight)])
    out[at] = symbol
    at += symbol >> emits
    word >>= first
    slot = uint64(slots[symbol >> to_context & contexts | word & byte])
    second = slot & low
    symbol = uint64(symbols[(slot >> five) + ((word & ((one << second) - one)) >> eight)])
    out[at] = symbol
    return bit + first + second, symbol >> to_context & contexts, at + (symbol >> emits)


@kernel
def pad(data, starts, ends, padded, begins):  # type: ignore[no-untyped-def]
    """Copy row i to `padded[begins[i]:]`, ZEROS zeros after it; up to 7 bytes after a row in `data` are read."""
    zero, eight = uint64(0), uint64(8)
    for row in range(starts.size):
        to, source, size = uint64(begins[row]), uint64(starts[row]), uint64(ends[row] - starts[row])
        for i in range(zero, size, eight):
            store(padded, to + i, load(data, source + i))
        store(padded, to + size, zero)
        store(padded, to + size + eight, zero)


@kernel
def collect(scratch, first, tokens, out):  # type: ignore[no-untyped-def]
    """Make tokens of the symbols, or unknown ids, from `scratch[first]` on."""
    numbers = uint64(_NUMBERS)
    for i in range(uint64(out.size)):
        symbol = uint64(scratch[first + i])
        if symbol < uint64(EMITS):
            out[i] = symbol
        elif tokens.size == 0:
            out[i] = symbol & numbers
        else:
            out[i] = tokens[symbol & numbers]


@kernel
def decode_rows(  # type: ignore[no-untyped-def]
    data, starts, ends, slots, symbols, tokens, ids, id_ranks, clusters, start, shortest, out, out_ends
):
    """Decode the blobs `data[starts[i]:ends[i]]` into `out` (int32), and each row's end in it into `out_ends`.

    data: uint8, with 16 bytes after the last row. Returns (fault, row of the fault); FULL where `out` has no room for
    that row. Rows are taken in turns, as in kernels/prefix.py: those of one turn are copied with zeros after each, so
    that no lane needs to look where its row ends. Each of LANES lanes decodes a row of its own, the large ones first,
    so that all come to an end together, and all go on until one is in a context that stands for an event.
    """
    zero, one, three, eight = uint64(0), uint64(1), uint64(3), uint64(8)
    none, resting = uint64(clusters + _NONE << 8), uint64(clusters + _RESTING << 8)
    event = uint64(slots.size - 256 * _EVENTS)
    open_end, escape = event + uint64(256 * _OPEN_END), event + uint64(256 * _ESCAPE)
    rows, room = uint64(starts.size), uint64(CHUNK)
    scratch, padded = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint8)
    place, begin, sizes = np.empty(rows, np.uint64), np.empty(rows, np.uint64), np.zeros(rows, np.uint64)
    bits, contexts, places = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    lane_rows, stops = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    done, filled = zero, zero
    while done < rows:
        last, need, size = done, one, zero  # a resting lane writes to place 0
        while last < rows:
            blob = uint64(ends[last] - starts[last])
            more = (blob << three) // uint64(shortest) + uint64(4)
            if last > done and max(need + more, size + blob + uint64(ZEROS)) > room:
                break
            place[last], begin[last] = need, size
            need += more
            size += blob + uint64(ZEROS)
            last += one
        if max(need, size) > room:
            room = max(need, size)
            scratch, padded = np.empty(room, np.uint32), np.empty(room, np.uint8)
        pad(data, starts[done:last], ends[done:last], padded, begin[done:last])
        contexts[:], lane_rows[:] = resting, rows
        following, least, most = done, max(size >> uint64(4), one), ~zero  # of the blobs to be taken next
        while True:
            busy = False
            for lane in range(LANES):
                row = lane_rows[lane]
                if contexts[lane] >= event:
                    bit = bits[lane]
                    if contexts[lane] > escape or (contexts[lane] < escape and bit < stops[lane]):
                        return NO_CODE, np.int64(row)
                    if contexts[lane] == open_end:
                        return OPEN_ESCAPE, np.int64(row)
                    if contexts[lane] == escape:
                        token = np.uint32((load(padded, bit >> three) >> (bit & uint64(7))) & uint64(0x7FFFFFFF))
                        if entry_of(token, ids, id_ranks) != 0:
                            return KNOWN_ESCAPED, np.int64(row)
                        scratch[places[lane]] = token
                        bits[lane], places[lane], contexts[lane] = bit + uint64(ESCAPED_BITS), places[lane] + one, none
                    else:
                        sizes[row] = places[lane] - place[row]
                        row = rows
                if row == rows:
                    while most > one:
                        while following < last:
                            blob = uint64(ends[following] - starts[following])
                            if least <= blob and blob < most:
                                break
                            following += one
                        if following < last:
                            break
                        least, most = max(least >> three, one), least
                        following = done
                    contexts[lane], places[lane] = resting, zero
                    if most > one:
                        row = following
                        final = uint64(ends[row]) - one
                        if data[final] == 0:
                            return ZERO_END, np.int64(row)
                        bits[lane], contexts[lane], places[lane] = (
                            begin[row] << three,
                            uint64(start) << eight,
                            place[row],
                        )
                        stops[lane] = bits[lane] + ((final - uint64(starts[row])) << three) + bit_length(data[final])
                        following += one
                    lane_rows[lane] = row
                busy |= contexts[lane] != resting
            if not busy:
                break
            b0, b1, b2, b3, b4, b5 = bits[0], bits[1], bits[2], bits[3], bits[4], bits[5]
            c0, c1, c2, c3, c4, c5 = contexts[0], contexts[1], contexts[2], contexts[3], contexts[4], contexts[5]
            a0, a1, a2, a3, a4, a5 = places[0], places[1], places[2], places[3], places[4], places[5]
            while (c0 | c1 | c2 | c3 | c4 | c5) & event == 0:
                b0, c0, a0 = two_steps(padded, slots, symbols, b0, c0, scratch, a0)
                b1, c1, a1 = two_steps(padded, slots, symbols, b1, c1, scratch, a1)
                b2, c2, a2 = two_steps(padded, slots, symbols, b2, c2, scratch, a2)
                b3, c3, a3 = two_steps(padded, slots, symbols, b3, c3, scratch, a3)
                b4, c4, a4 = two_steps(padded, slots, symbols, b4, c4, scratch, a4)
                b5, c5, a5 = two_steps(padded, slots, symbols, b5, c5, scratch, a5)
            bits[0], bits[1], bits[2], bits[3], bits[4], bits[5] = b0, b1, b2, b3, b4, b5
            contexts[0], contexts[1], contexts[2], contexts[3], contexts[4], contexts[5] = c0, c1, c2, c3, c4, c5
            places[0], places[1], places[2], places[3], places[4], places[5] = a0, a1, a2, a3, a4, a5
        total = zero
        for row in range(done, last):
            total += sizes[row]
        if filled + total > uint64(out.size):
            return FULL, np.int64(done)
        for row in range(done, last):
            end = filled + sizes[row]
            collect(scratch, place[row], tokens, out[filled:end])
            out_ends[row] = filled = end
        done = last
    return OK, np.int64(0)
