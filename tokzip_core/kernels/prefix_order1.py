"""Encode and decode whole columns with a prefix-class code for each context (coders/prefix_order1.py).

Imports numpy, coders, kernels. All arithmetic is uint64, as in kernels/prefix.py.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.coders.prefix import MAX_LENGTH
from tokzip_core.coders.prefix_order1 import ESCAPE, NUMBER_BITS, UNASSIGNED
from tokzip_core.kernels import kernel
from tokzip_core.kernels.lookup import entry_of
from tokzip_core.kernels.prefix import ESCAPED_BITS, append, bit_length
from tokzip_core.kernels.words import load

LANES = 8
TURNS = 1 << 8  # symbols of each lane between two looks at what the lanes need
LOOKED_UP = 1 << 13  # tokens whose codes are looked up at a time
CHUNK = 1 << 20  # room for the symbols of one turn of decoding, at worst, as in kernels/prefix.py
OK, ZERO_END, NO_CODE, KNOWN_ESCAPED, OPEN_ESCAPE, FULL = 0, 1, 2, 3, 4, -1
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio: multiplicative hashing (Knuth, vol. 3, 6.4)


@kernel
def place_of(key, mask):  # type: ignore[no-untyped-def]
    """Where in the hash table the search for a key begins."""
    return ((key * uint64(_MULTIPLIER)) >> uint64(40)) & mask


@kernel
def fill_cells(keys, entries, cells):  # type: ignore[no-untyped-def]
    """Enter `keys` with `entries` (uint32, not 0), in this order, into the hash table `cells` (uint64[2^n])."""
    mask = uint64(cells.size - 1)
    for i in range(keys.size):
        place = place_of(uint64(keys[i]), mask)
        while cells[place] != 0:
            place = (place + uint64(1)) & mask
        cells[place] = uint64(keys[i]) << uint64(32) | uint64(entries[i])


@kernel
def first_probes(tokens, ids, id_contexts, contexts, cells, known, codes):  # type: ignore[no-untyped-def]
    """Look up `tokens`, each after the one before: `known` of each, and in `codes` its cell if the first probe has it.

    Without a branch that waits for a lookup, so that the processor has many of them under way.
    """
    top, mask = uint64(contexts.size - 1), uint64(cells.size - 1)
    context = uint64(0)
    for i in range(tokens.size):
        found = uint64(contexts[min(uint64(tokens[i]), top)])
        if found == 0:
            found = uint64(entry_of(tokens[i], ids, id_contexts))
        known[i] = found
        found -= uint64(found != 0)
        key = context | found & uint64((1 << NUMBER_BITS) - 1)
        cell = cells[place_of(key, mask)]
        codes[i] = cell * uint64(cell >> uint64(32) == key)
        context = found & ~uint64((1 << NUMBER_BITS) - 1)


@kernel
def encode_rows(  # type: ignore[no-untyped-def]
    values, ids, id_contexts, contexts, cells, escapes, shared, start, starts, ends, out, out_ends
):
    """Write the blobs of rows `values[starts[i]:ends[i]]` into `out`, and each blob's end into `out_ends`.

    The tables are those of Order1Tables. `out` has room for 12 bytes a token and 16 more.
    """
    one, five, low = uint64(1), uint64(5), uint64(31)
    mask, all_shared = uint64(cells.size - 1), uint64(escapes.size - 1)
    numbers = uint64((1 << NUMBER_BITS) - 1)
    known_of, codes = np.empty(LOOKED_UP, np.uint32), np.empty(LOOKED_UP, np.uint32)
    at, looked_up, base = uint64(0), uint64(0), uint64(0)
    for row in range(starts.size):
        begin, word, filled, context = at, uint64(0), uint64(0), uint64(start)
        for i in range(uint64(starts[row]), uint64(ends[row])):
            if i >= looked_up or i < base:
                base, looked_up = i, min(uint64(values.size), i + uint64(LOOKED_UP))
                first_probes(values[base:looked_up], ids, id_contexts, contexts, cells, known_of, codes)
            known, entry = uint64(known_of[i - base]), uint64(codes[i - base])
            number = (known - one) & numbers
            if i == base or i == uint64(starts[row]) or known == 0 or context == all_shared:
                entry = uint64(0)  # looked up after another token, or as another
            if entry == 0 and known != 0 and context != all_shared:
                key = context << uint64(NUMBER_BITS) | number
                place = place_of(key, mask)
                while cells[place] != 0 and cells[place] >> uint64(32) != key:
                    place = (place + one) & mask
                entry = cells[place] & uint64(0xFFFFFFFF)
            if entry == 0:
                if context != all_shared:
                    entry = uint64(escapes[context])
                    at, word, filled = append(out, at, word, filled, entry >> five, entry & low)
                entry = uint64(shared[number]) if known != 0 else uint64(escapes[all_shared])
            at, word, filled = append(out, at, word, filled, entry >> five, entry & low)
            context = (known - one) >> uint64(NUMBER_BITS)
            if known == 0:
                at, word, filled = append(out, at, word, filled, uint64(values[i]), uint64(ESCAPED_BITS))
                context = all_shared
        if filled > 0:
            at += one
        while at > begin and out[at - one] == 0:
            at -= one
        out_ends[row] = at


@kernel
def take_escaped(data, lane, bits, end, places, scratch, contexts, all_shared, ids, id_contexts):  # type: ignore[no-untyped-def]
    """After ESCAPE, put the id that follows behind it and go on in no cluster; return a fault."""
    bit, place = bits[lane], places[lane]
    if scratch[place - uint64(1)] == UNASSIGNED:
        return NO_CODE
    word = uint64(0)
    if bit < end:
        word = load(data, bit >> uint64(3)) >> (bit & uint64(7))
        if end - bit < uint64(ESCAPED_BITS):
            word &= (uint64(1) << (end - bit)) - uint64(1)
    token = np.uint32(word & uint64(0x7FFFFFFF))
    scratch[place] = token
    bits[lane], places[lane] = bit + uint64(ESCAPED_BITS), place + uint64(1)
    contexts[lane] = all_shared
    return KNOWN_ESCAPED if entry_of(token, ids, id_contexts) != 0 else OK


@kernel
def decode_rows(  # type: ignore[no-untyped-def]
    data, starts, ends, slots, symbols, tokens, ids, id_contexts, start, shortest, out, out_ends
):
    """Decode the blobs `data[starts[i]:ends[i]]` into `out` (int32), and each row's end in it into `out_ends`.

    data: uint8, with 16 bytes after the last row. Returns (fault, row of the fault); FULL where `out` has no room for
    that row. Rows are taken in turns, as in kernels/prefix.py; each of LANES lanes decodes the symbols of a row of its
    own, one at a time, as the next table depends on it. Then the symbols become tokens.
    """
    zero, one, three, five, seven = uint64(0), uint64(1), uint64(3), uint64(5), uint64(7)
    eight, low, byte, to_context = uint64(8), uint64(31), uint64(255), uint64(NUMBER_BITS - 8)
    numbers, context_mask = uint64((1 << NUMBER_BITS) - 1), uint64(2047 << 8)
    idle = uint64(slots.size - 256)
    all_shared = idle - uint64(256)
    rows = uint64(starts.size)
    scratch = np.empty(CHUNK + TURNS, np.uint32)
    place, sizes = np.empty(starts.size, np.uint64), np.zeros(starts.size, np.uint64)
    bits, lane_ends, limits = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    contexts, places, lane_rows = np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64), np.zeros(LANES, np.uint64)
    done, filled = zero, zero
    while done < rows:
        last, need = done, zero
        while last < rows:
            room = uint64(8 * (ends[last] - starts[last]) // shortest + 4)
            if last > done and need + room > uint64(CHUNK):
                break
            place[last] = need
            need += room
            last += one
        if need > uint64(CHUNK):
            scratch = np.empty(need + uint64(TURNS), np.uint32)
        nowhere = uint64(scratch.size - TURNS)  # where idle lanes write
        contexts[:] = idle
        following = done
        while True:
            busy = False
            for lane in range(LANES):
                while True:  # bring the lane to where a row's end is far, or to where no row is left
                    if contexts[lane] == idle:
                        while following < last and starts[following] == ends[following]:
                            following += one
                        if following == last:
                            bits[lane], limits[lane], places[lane] = zero, uint64(1 << 62), nowhere
                            break
                        final = uint64(ends[following]) - one
                        if data[final] == 0:
                            return ZERO_END, np.int64(following)
                        bits[lane], contexts[lane] = uint64(starts[following]) << three, uint64(start) << eight
                        lane_ends[lane] = (final << three) + bit_length(data[final])
                        limits[lane] = lane_ends[lane] - min(lane_ends[lane], uint64(MAX_LENGTH))
                        places[lane], lane_rows[lane] = place[following], following
                        following += one
                    bit, end = bits[lane], lane_ends[lane]
                    if bit < limits[lane]:
                        busy = True
                        break
                    if bit < end:
                        word = (load(data, bit >> three) >> (bit & seven)) & ((one << (end - bit)) - one)
                        entry = uint64(slots[contexts[lane] | word & byte])
                        size = entry & low
                        symbol = uint64(symbols[(entry >> five) + ((word & ((one << size) - one)) >> eight)])
                        scratch[places[lane]] = symbol
                        places[lane] += one
                        bits[lane] = bit + size
                        contexts[lane] = (symbol >> to_context) & context_mask
                        if symbol >= uint64(ESCAPE):
                            fault = take_escaped(
                                data, lane, bits, end, places, scratch, contexts, all_shared, ids, id_contexts
                            )
                            if fault != OK:
                                return fault, np.int64(lane_rows[lane])
                        elif bit + size >= end and symbol >> uint64(31) == 0:
                            return OPEN_ESCAPE, np.int64(lane_rows[lane])
                    if bits[lane] >= end:
                        row = lane_rows[lane]
                        sizes[row] = places[lane] - place[row]
                        contexts[lane] = idle
            if not busy:
                break
            care, turn = zero, zero
            while care == zero and turn < uint64(TURNS):
                for lane in range(LANES):
                    bit = bits[lane]
                    word = load(data, bit >> three) >> (bit & seven)
                    entry = uint64(slots[contexts[lane] | word & byte])
                    size = entry & low
                    symbol = uint64(symbols[(entry >> five) + ((word & ((one << size) - one)) >> eight)])
                    scratch[places[lane] + turn] = symbol
                    contexts[lane] = (symbol >> to_context) & context_mask
                    bit += size
                    bits[lane] = bit
                    care |= uint64(bit >= limits[lane]) | uint64(symbol >= uint64(ESCAPE))
                turn += one
            for lane in range(LANES):
                if contexts[lane] == idle:
                    continue
                places[lane] += turn
                if uint64(scratch[places[lane] - one]) >= uint64(ESCAPE):
                    end = lane_ends[lane]
                    fault = take_escaped(data, lane, bits, end, places, scratch, contexts, all_shared, ids, id_contexts)
                    if fault != OK:
                        return fault, np.int64(lane_rows[lane])
        total = zero
        for row in range(done, last):
            total += sizes[row]
        if filled + total >= uint64(out.size):
            return FULL, np.int64(done)
        for row in range(done, last):
            i, stop = place[row], place[row] + sizes[row]
            while i < stop:
                symbol = uint64(scratch[i])
                if symbol < uint64(ESCAPE):
                    out[filled] = tokens[symbol & numbers]
                    filled += symbol >> uint64(31)
                else:
                    i += one
                    out[filled] = scratch[i]
                    filled += one
                i += one
            out_ends[row] = filled
        done = last
    return OK, np.int64(0)
