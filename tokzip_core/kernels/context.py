"""Encode and decode whole columns by a context model (docs/FORMAT.md, `context`). Imports numpy, numba, kernels.

Tokens stand as symbols: 0 is the row's end, 1 an unknown id among contexts, 2 … n - 1 the known ids in order. An
unknown id itself is held as the complement of its value. For the arrays of a codebook see models/context.py.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.context_coder import (
    NONE,
    find,
    finish_writing,
    put_bits,
    put_entry,
    put_flag,
    start_writing,
)

OK, FULL, OVERRUN, TOO_FAR = 0, 1, 2, 3
TWO = 1 << 14  # places by the last two tokens
ONE = 1 << 12  # places by the last
WINDOW = 256  # recent tokens kept
COMMON = 3  # tokens of a frequency class under this are not kept among the recent
LONGEST = 15  # of the matches that are told apart
_LENGTH_CLASS = np.array([0, 0, 1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6], np.int64)


@kernel
def match(tokens, row, i, found, length, by_two, by_one):  # type: ignore[no-untyped-def]
    """Where the tokens before `i` stood last in this row: (the place after them or -1, how many of them agree).

    found, length: the match that the token before has confirmed, or -1. A place under `row` is another row's.
    """
    if i == row:
        return found, length
    here = uint64(i)
    a = tokens[here - uint64(1)]
    one = uint64(np.uint32(a)) & uint64(ONE - 1)
    if i - row >= 2:
        b = tokens[here - uint64(2)]
        mixed = uint64(np.uint32(a)) * uint64(0x9E3779B1) + uint64(np.uint32(b)) * uint64(0x85EBCA77)
        two = (mixed >> uint64(12)) & uint64(TWO - 1)
        if found < 0:
            j = np.int64(by_two[two])
            if j >= row + 2:
                there = uint64(j)
                if tokens[there - uint64(1)] == a and tokens[there - uint64(2)] == b:
                    found, length = j, 2
                    while length < LONGEST and j - length > row:
                        back = uint64(length + 1)
                        if tokens[there - back] != tokens[here - back]:
                            break
                        length += 1
        by_two[two] = i
    if found < 0:
        j = np.int64(by_one[one])
        if j > row and tokens[uint64(j - 1)] == a:
            found, length = j, 1
    by_one[one] = i
    return found, length


@kernel
def flag_context(length, predicted, p1, history, frequency):  # type: ignore[no-untyped-def]
    """Which flag tells whether a match holds."""
    among = np.int64(frequency[p1]) if length == 1 else history & 7
    rarity = np.int64(frequency[predicted if predicted >= 0 else 1])
    return (_LENGTH_CLASS[length] * 8 + rarity) * 8 + among


@kernel
def to_symbols(values, dense, ids, tokens):  # type: ignore[no-untyped-def]
    """Ids (uint32) to symbols (int32). dense: the symbol by id, 0 if unknown, up to a bounded id; ids: all of them."""
    for i in range(values.size):
        value = values[i]
        if value < dense.size:
            symbol = dense[value]
        else:
            at = np.searchsorted(ids, value)
            symbol = np.int32(at + 2) if at < ids.size and ids[at] == value else np.int32(0)
        tokens[i] = symbol if symbol else ~np.int64(value)


@kernel
def look_up(tokens, row, end, first, pairs, table, by_pair, pair_entries, last_entries):  # type: ignore[no-untyped-def]
    """For every token of a row and its end: the list by the last two, the entry in it, and in the list by the last.

    In a pass of its own, so that many look-ups wait for the memory at once.
    """
    p1, p2 = np.int64(0), np.int64(0)
    for i in range(row, end + 1):
        symbol = np.int64(0) if i == end else np.int64(tokens[i] if tokens[i] >= 0 else 1)
        at = find(pairs, p2, p1)
        by_pair[i] = at
        pair_entries[i] = find(table, at, symbol) if at != NONE else NONE
        last_entries[i] = find(table, first[p1], symbol)
        p2, p1 = p1, symbol


@kernel
def encode_rows(  # type: ignore[no-untyped-def]
    values, starts, ends, dense, ids, tokens, heads, weights, first, frequency, flags, pairs, recent_entries, table,
    all_entries, totals, escapes, out, out_ends,
):  # fmt: skip
    """Write the blobs of rows `values[starts[i]:ends[i]]` into `out` (uint8, 32 bytes a row and token), and their ends.

    values: uint32 ids; dense, ids: see `to_symbols`; tokens: int32, room for all symbols. table: the entry of each list
    but the first by (list, symbol); all_entries: those of list 0 by symbol. totals, escapes: by list, log2 of
    its weight and the cost of its escape, in 1/16 bits. recent_entries: int64[11], the first entry of lists 1 to 10.
    """
    state = np.zeros(4, np.uint64)
    by_two, by_one = np.full(TWO, -1, np.int32), np.full(ONE, -1, np.int32)
    seen = np.zeros(frequency.size, np.uint32)  # 1 + how many recent tokens there were, over all rows, when this came
    ring = np.zeros(WINDOW, np.int32)
    walk_lists, walk_entries = np.zeros(4, np.uint32), np.zeros(4, np.uint32)
    kept = 0
    by_pair, pair_entries = np.empty(tokens.size, np.uint32), np.empty(tokens.size, np.uint32)
    last_entries = np.empty(tokens.size, np.uint32)
    row = np.int64(0)
    for r in range(starts.size):
        begin, end = state[2], row + ends[r] - starts[r]
        if row == end:
            out_ends[r] = begin
            continue
        to_symbols(values[starts[r] : ends[r]], dense, ids, tokens[row:])
        look_up(tokens, row, end, first, pairs, table, by_pair, pair_entries, last_entries)
        start_writing(state)
        found, length, history, kept_before = np.int64(-1), np.int64(0), np.int64(0), kept
        p1 = np.int64(0)
        for i in range(row, end + 1):
            token = tokens[i] if i < end else np.int32(0)
            found, length = match(tokens, row, i, found, length, by_two, by_one)
            hit = False
            if found >= 0:
                predicted = tokens[found]
                hit = i < end and predicted == token
                put_flag(state, out, hit, flags[flag_context(length, predicted, p1, history, frequency)])
                history = history * 2 + np.int64(hit)
                if hit:
                    found, length = found + 1, min(length + 1, np.int64(LONGEST))
                else:
                    found = np.int64(-1)
            if not hit:
                at, entry = by_pair[i], pair_entries[i]
                if at != NONE:
                    put_entry(state, out, heads, weights, at, entry)
                if entry == NONE:
                    walked, cost = 0, np.int64(0)
                    at = first[p1]
                    while at != NONE:
                        entry = NONE
                        if token >= 0:
                            if at == 0:
                                entry = all_entries[token]
                            else:
                                entry = find(table, at, token) if walked else last_entries[i]
                        walk_lists[walked], walk_entries[walked] = at, entry
                        walked += 1
                        if entry != NONE:
                            cost += np.int64(totals[at]) - 16 * np.int64(weights[entry] & 31)
                            break
                        cost += np.int64(escapes[at])
                        at = heads[at, 3]
                    if token < 0:
                        cost += 31 * 16
                    recent = min(kept - kept_before, WINDOW)
                    coded = False
                    if recent > 0:
                        at = np.uint32(1)
                        while (recent >> np.int64(at)) != 0 and at < 9:
                            at += np.uint32(1)
                        away = WINDOW
                        if token >= 0:
                            if np.int64(seen[token]) > kept_before:
                                away = int(kept - np.int64(seen[token]))
                        else:
                            away = 0
                            while away < recent and ring[(kept - 1 - away) & (WINDOW - 1)] != token:
                                away += 1
                        entry = recent_entries[at] + away
                        if away < recent and entry < recent_entries[at + 1]:
                            direct = np.int64(totals[at]) - 16 * np.int64(weights[entry] & 31)
                            coded = bool(direct < cost + np.int64(escapes[at]))
                        put_entry(state, out, heads, weights, at, np.uint32(entry) if coded else NONE)
                    if not coded:
                        for k in range(walked):
                            put_entry(state, out, heads, weights, walk_lists[k], walk_entries[k])
                        if token < 0:
                            put_bits(state, out, uint64(~token) >> uint64(15), uint64(16))
                            put_bits(state, out, uint64(~token) & uint64(0x7FFF), uint64(15))
            if i < end:
                p1 = np.int64(token if token >= 0 else 1)
                if frequency[p1] >= COMMON:
                    ring[kept & (WINDOW - 1)] = token
                    kept += 1
                    if token >= 0:
                        seen[token] = kept
        finish_writing(state, out)
        if state[2] == begin:  # nothing but zeros: an empty blob is an empty row
            out[begin] = 0
            state[2] += uint64(1)
        out_ends[r] = state[2]
        row = end


@kernel
def refill(data, at, stop, code, width):  # type: ignore[no-untyped-def]
    """Take in bytes until `width` is 2^48 or more; zeros after `stop`."""
    while width < uint64(1 << 48):
        more = uint64(0)
        if at + uint64(1) < stop:
            more = (uint64(data[at]) << uint64(8)) | uint64(data[at + uint64(1)])
        elif at < stop:
            more = uint64(data[at]) << uint64(8)
        at += uint64(2)
        code = (code << uint64(16)) | more
        width <<= uint64(16)
    return at, code, width


@kernel
def decode_rows(  # type: ignore[no-untyped-def]
    data, starts, ends, from_row, heads, classes, symbols, first, frequency, flags, pairs, ids, out, size, out_ends
):  # fmt: skip
    """Decode blobs `data[starts[i]:ends[i]]`, from row `from_row` on, into `out[size:]` (int32), ends to `out_ends`.

    Returns (status, row, size): FULL where `out` has no room for that row.
    """
    by_two, by_one = np.full(TWO, -1, np.int32), np.full(ONE, -1, np.int32)
    ring = np.zeros(WINDOW, np.int32)
    one, five, sixteen, low = uint64(1), uint64(5), uint64(16), uint64(31)
    row = np.int64(size)
    for r in range(from_row, starts.size):
        next_byte, stop = uint64(starts[r]), uint64(ends[r])
        if next_byte == stop:
            out_ends[r] = row
            continue
        code, width = uint64(0), uint64(0xFFFFFFFFFFFFFFFF)
        for _ in range(8):
            code = (code << uint64(8)) | (uint64(data[next_byte]) if next_byte < stop else uint64(0))
            next_byte += one
        last_byte = stop + uint64(8)
        found, length, history, kept, i = np.int64(-1), np.int64(0), np.int64(0), np.int64(0), row
        p1, p2 = uint64(0), uint64(0)
        while True:
            by_pair = find(pairs, p2, p1)  # early, so that the memory is at work during what follows
            found, length = match(out, row, i, found, length, by_two, by_one)
            hit, token = False, np.int32(0)
            if found >= 0:
                next_byte, code, width = refill(data, next_byte, stop, code, width)
                token = out[found]
                part = (width >> sixteen) * flags[flag_context(length, token, p1, history, frequency)]
                hit = code < part
                history = history * 2 + np.int64(hit)
                if hit:
                    width = part
                    found, length = found + 1, min(length + 1, np.int64(LONGEST))
                else:
                    code -= part
                    width -= part
                    found = np.int64(-1)
            if not hit:
                stage, symbol, at = 0, NONE, by_pair  # by two, then recent, then by the last, its class, and all
                while True:
                    if at == NONE:
                        stage += 1
                        if stage == 1:
                            if kept > 0:
                                at = np.uint32(1)
                                while (kept >> np.int64(at)) != 0 and at < 9:
                                    at += np.uint32(1)
                            continue
                        if stage == 3:
                            break
                        at = first[p1]
                    next_byte, code, width = refill(data, next_byte, stop, code, width)
                    unit = (width >> uint64(32)) * uint64(heads[at, 0])
                    held = unit * uint64(heads[at, 1])
                    if code >= held:
                        code -= held
                        width -= held
                        at = heads[at, 3] if stage == 2 else NONE
                        continue
                    weight = code // unit
                    begin, k = uint64(0), uint64(heads[at, 2])
                    while weight >= uint64(classes[k, 0]):
                        begin = uint64(classes[k, 0])
                        k += one
                    q = uint64(classes[k, 1]) & low
                    among = (weight - begin) >> q
                    code -= (begin + (among << q)) * unit
                    width = unit << q
                    symbol = symbols[(uint64(classes[k, 1]) >> five) + among]
                    break
                if symbol == NONE:
                    unknown = uint64(0)
                    for bits in (sixteen, uint64(15)):
                        next_byte, code, width = refill(data, next_byte, stop, code, width)
                        width >>= bits
                        value = min(code // width, (one << bits) - one)
                        code = min(code - value * width, width - one)
                        unknown = (unknown << bits) | value
                    token = np.int32(~np.int64(unknown))
                elif stage == 1:
                    if np.int64(symbol) >= kept:
                        return TOO_FAR, r, row
                    token = ring[(kept - 1 - np.int64(symbol)) & (WINDOW - 1)]
                elif symbol == 0:
                    break
                else:
                    token = np.int32(symbol)
            if next_byte > last_byte:
                return OVERRUN, r, row
            if i >= out.size:
                return FULL, r, row
            out[i] = token
            i += 1
            p2, p1 = p1, uint64(token) if token >= 0 else one
            if frequency[p1] >= COMMON:
                ring[kept & (WINDOW - 1)] = token
                kept += 1
        next_byte, code, width = refill(data, next_byte, stop, code, width)
        if next_byte > last_byte:
            return OVERRUN, r, row
        for k in range(row, i):
            out[k] = np.int32(ids[out[k] - 2]) if out[k] >= 0 else ~out[k]
        row = i
        out_ends[r] = row
    return OK, starts.size, row
