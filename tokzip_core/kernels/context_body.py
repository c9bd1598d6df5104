"""Write and read the body of a `context` codebook (docs/FORMAT.md). Imports numpy, numba and kernels only.

Everything goes through the coder of kernels/context_coder.py. A list's symbols are coded by the list that it goes on
with, so that an entry costs what it is worth there.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.context import WINDOW
from tokzip_core.kernels.context_coder import (
    HEAD,
    NONE,
    UNIT,
    finish_writing,
    get_bits,
    get_number,
    get_symbol,
    overrun,
    put_bits,
    put_number,
    put_symbol,
    start_reading,
    start_writing,
)

ALL, RECENT, BY_CLASS, BY_LAST, BY_TWO = 0, 1, 2, 3, 4  # kinds of list
FLAGS = 448  # contexts of the flag of a match
RECENT_LISTS = 9  # by how many tokens are recent
FIRST_CLASS = 1 + RECENT_LISTS  # the number of the first list by class
MOST_WEIGHT = 1 << 24
RAREST = 64  # an escape has at least this share of its list's weight
OK, OVERRUN, BAD_ID, BAD_LIST, BAD_SYMBOL, BAD_COUNT = 0, 1, 2, 3, 4, 5

CODES = 96  # of weights

# Contexts of adaptive numbers; to some is added a rarity, the kind of list, or 32 kinds and a q.
CONTEXTS = 400
GAP, RARITY, Q, SIZE, ESCAPE, FIRST, WITH_RECENT, CLASS, PAIRS, STEP, COUNT = 0, 1, 10, 20, 30, 40, 48, 50, 60, 70, 230


@kernel
def new_numbers():  # type: ignore[no-untyped-def]
    return np.full((CONTEXTS, 33), uint64(32768))


@kernel
def escape_weight(code):  # type: ignore[no-untyped-def]
    """Quarter steps of a power of two: 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 10, …"""
    return ((uint64(4) + (uint64(code) & uint64(3))) << (uint64(code) >> uint64(2))) >> uint64(2)


@kernel
def write_list(state, out, numbers, kind, place, escape, recent, begin, end, symbols, weights, lists, table):  # type: ignore[no-untyped-def]  # fmt: skip
    """The list at `place`, of entries `begin` to `end`; escape, recent: the codes of these weights, or recent = 0."""
    after = lists[uint64(place) * uint64(UNIT) + uint64(2)]
    put_number(state, out, numbers, SIZE + kind, uint64(lists[uint64(place) * uint64(UNIT) + uint64(1)]) & uint64(31))
    put_number(state, out, numbers, ESCAPE + kind, uint64(escape))
    if kind == BY_CLASS:
        put_number(state, out, numbers, WITH_RECENT, uint64(recent))
    last, entry = np.int64(-1), begin
    while entry < end:
        q = np.int64(weights[entry] & 31)
        size = 1
        while entry + size < end and np.int64(weights[entry + size] & 31) == q:
            size += 1
        if last < 0:
            put_number(state, out, numbers, FIRST + kind, uint64(q))
        else:
            put_number(state, out, numbers, STEP + 32 * kind + last, uint64(last - q - 1))
        put_number(state, out, numbers, COUNT + 32 * kind + q, uint64(size - 1))
        last = q
        entry += size
    if kind != RECENT:
        for entry in range(begin, end):
            put_symbol(state, out, lists, weights, table, after, symbols[entry])


@kernel
def write_body(  # type: ignore[no-untyped-def]
    ids, rarity, flags, first, n_classes, escapes, recents, places, begins, symbols, weights, lists, pairs,
    pair_counts, table, out,
):  # fmt: skip
    """Write all into `out` (uint8, large enough) and return how many bytes. For the rest see models/context.py.

    pairs: uint32, the last symbols p1 of the lists by two, in their order; pair_counts: of these, how many each p2 has.
    """
    state, numbers = np.zeros(4, np.uint64), new_numbers()
    start_writing(state)
    before = uint64(0)
    for i in range(ids.size):
        put_number(state, out, numbers, GAP, uint64(ids[i]) - before)
        before = uint64(ids[i]) + uint64(1)
    n = rarity.size
    q_of = np.zeros(n, np.uint64)
    for entry in range(begins[0], begins[1]):
        q_of[symbols[entry]] = uint64(weights[entry]) & uint64(31)
    last = np.int64(0)
    for s in range(n):
        put_number(state, out, numbers, RARITY + last, uint64(rarity[s]))
        last = np.int64(rarity[s])
        if s != 1:
            put_number(state, out, numbers, Q + last, q_of[s])
    put_number(state, out, numbers, ESCAPE, uint64(escapes[0]))
    for i in range(FLAGS):
        put_bits(state, out, uint64(flags[i]), uint64(8))
    at = 1
    for i in range(RECENT_LISTS + n_classes):
        kind = RECENT if i < RECENT_LISTS else BY_CLASS
        write_list(
            state, out, numbers, kind, places[at], escapes[at], recents[at], begins[at], begins[at + 1], symbols,
            weights, lists, table,
        )  # fmt: skip
        at += 1
    for s in range(n):
        own = at < places.size and first[s] == places[at]
        if n_classes:
            of = lists[uint64(places[at]) * uint64(UNIT) + uint64(2)] if own else first[s]
            number = np.searchsorted(places[FIRST_CLASS : FIRST_CLASS + n_classes], of)
            put_number(state, out, numbers, CLASS + np.int64(rarity[s]), uint64(number))
        if own:
            write_list(
                state, out, numbers, BY_LAST, places[at], escapes[at], 0, begins[at], begins[at + 1], symbols, weights,
                lists, table,
            )  # fmt: skip
            at += 1
        else:
            put_number(state, out, numbers, SIZE + BY_LAST, uint64(0))
    i = 0
    for s in range(n):
        put_number(state, out, numbers, PAIRS + np.int64(rarity[s]), uint64(pair_counts[s]))
        for _ in range(pair_counts[s]):
            put_symbol(state, out, lists, weights, table, first[s], pairs[i])
            write_list(
                state, out, numbers, BY_TWO, places[at], escapes[at], 0, begins[at], begins[at + 1], symbols, weights,
                lists, table,
            )  # fmt: skip
            at += 1
            i += 1
    finish_writing(state, out)
    return state[2]


@kernel
def end_list(lists, at, after, held, recent, escape, kind):  # type: ignore[no-untyped-def]
    """Fill the head of the list that begins at `lists[at]`; whether its weights are allowed."""
    total = held + recent + escape
    if total > uint64(MOST_WEIGHT) or (kind != RECENT and escape * uint64(RAREST) < total):
        return False
    lists[at] = uint64(1 << 32) // total if total > uint64(1) else uint64(0xFFFFFFFF)
    lists[at + uint64(1)] |= held << uint64(5)
    lists[at + uint64(2)] = after
    lists[at + uint64(3)] = held + recent
    return True


@kernel
def read_list(state, data, numbers, kind, n_classes, after, n, counts, lists, symbols, weights):  # type: ignore[no-untyped-def]
    """The list after the last one, of `n_classes` classes, which goes on with the list at `after`; a status.

    counts: uint64[2], the units and entries so far.
    """
    at, entry, size = counts[0] * uint64(UNIT), counts[1], uint64(lists.size)
    if n_classes > uint64(24) or at + uint64(HEAD) + n_classes > size:
        return BAD_COUNT
    escape = get_number(state, data, numbers, ESCAPE + kind)
    recent = get_number(state, data, numbers, WITH_RECENT) if kind == BY_CLASS else uint64(0)
    if escape >= uint64(CODES) or recent > uint64(CODES):
        return BAD_LIST
    held, q, room = uint64(0), uint64(0), at + uint64(HEAD) + n_classes
    first_symbol = room
    for c in range(n_classes):
        if c == 0:
            q = get_number(state, data, numbers, FIRST + kind)
        else:
            q -= get_number(state, data, numbers, STEP + 32 * kind + np.int64(q)) + uint64(1)
        if q > uint64(23):  # also where it is under 0
            return BAD_LIST
        count = get_number(state, data, numbers, COUNT + 32 * kind + np.int64(q)) + uint64(1)
        if count > size - room or count > uint64(weights.size) - entry:
            return BAD_COUNT
        for i in range(entry, entry + count):
            weights[i] = (held << uint64(5)) | q
            held += uint64(1) << q
        entry += count
        room += count
        if held > uint64(MOST_WEIGHT) or overrun(state):
            return BAD_LIST
        lists[at + uint64(HEAD) + uint64(c)] = (held << uint64(5)) | q
    lists[at + uint64(1)] = n_classes
    weight = escape_weight(recent - uint64(1)) if recent else uint64(0)
    if not end_list(lists, at, after, held, weight, escape_weight(escape), kind):
        return BAD_LIST
    if kind == RECENT and entry - counts[1] > uint64(WINDOW):
        return BAD_LIST
    for i in range(room - first_symbol):
        symbol = uint64(i)  # of recent lists: how far back
        if kind != RECENT:
            symbol = uint64(get_symbol(state, data, lists, after))
            if symbol >= n or overrun(state):
                return BAD_SYMBOL
        lists[first_symbol + uint64(i)] = symbol
        symbols[counts[1] + uint64(i)] = symbol
    counts[0], counts[1] = (room + uint64(UNIT - 1)) // uint64(UNIT), entry
    return OK


@kernel
def read_all(state, data, numbers, n, rarity, counts, lists, symbols, weights):  # type: ignore[no-untyped-def]
    """Rarities and the list of all, whose entries come in order of symbols and are sorted by falling q; a status."""
    q_of = np.zeros(n, np.uint64)
    begins = np.zeros(26, np.int64)
    last = np.int64(0)
    for s in range(n):
        value = get_number(state, data, numbers, RARITY + last)
        if value > uint64(7):
            return BAD_LIST
        last = np.int64(value)
        rarity[s] = last
        if s != 1:
            q_of[s] = get_number(state, data, numbers, Q + last)
            if q_of[s] > uint64(23) or overrun(state):
                return BAD_LIST
            begins[24 - np.int64(q_of[s])] += 1
    n_classes = uint64(np.count_nonzero(begins))
    begins = np.cumsum(begins)
    for s in range(n):
        if s != 1:
            slot = 23 - np.int64(q_of[s])
            symbols[begins[slot]] = s
            begins[slot] += 1
    room = uint64(HEAD) + n_classes + uint64(n - 1)
    if room > uint64(lists.size):
        return BAD_COUNT
    held, c = uint64(0), uint64(HEAD - 1)
    for entry in range(n - 1):
        q = q_of[symbols[entry]]
        c += uint64(1) if entry == 0 or q != q_of[symbols[entry - 1]] else uint64(0)
        weights[entry] = (held << uint64(5)) | q
        held += uint64(1) << q
        if held > uint64(MOST_WEIGHT):
            return BAD_LIST
        lists[c] = (held << uint64(5)) | q
        lists[uint64(HEAD) + n_classes + uint64(entry)] = symbols[entry]
    lists[1] = n_classes
    code = get_number(state, data, numbers, ESCAPE)
    if code >= uint64(CODES) or not end_list(lists, uint64(0), NONE, held, uint64(0), escape_weight(code), ALL):
        return BAD_LIST
    counts[0], counts[1] = (room + uint64(UNIT - 1)) // uint64(UNIT), uint64(n - 1)
    return OK


@kernel
def read_body(data, begin, ids, rarity, flags, first, n_classes, places, lists, symbols, weights, pairs):  # type: ignore[no-untyped-def]
    """Fill the arrays, whose sizes are what the body has declared, from `data[begin:]`; a status.

    places: uint32, of lists 1 to 9 and those by class. pairs: uint64[., 2], key and place of each list by two.
    """
    state, numbers = np.zeros(4, np.uint64), new_numbers()
    start_reading(state, data, uint64(begin), uint64(data.size))
    before = uint64(0)
    for i in range(ids.size):
        before += get_number(state, data, numbers, GAP)
        if before >= uint64(1 << 31) or overrun(state):
            return BAD_ID
        ids[i] = before
        before += uint64(1)
    n = rarity.size
    counts = np.zeros(2, np.uint64)
    status = read_all(state, data, numbers, n, rarity, counts, lists, symbols, weights)
    if status != OK:
        return status
    for i in range(FLAGS):
        flags[i] = get_bits(state, data, uint64(8))
    for i in range(RECENT_LISTS + n_classes):
        kind = RECENT if i < RECENT_LISTS else BY_CLASS
        places[i] = counts[0]
        size = get_number(state, data, numbers, SIZE + kind)
        status = read_list(state, data, numbers, kind, size, uint64(0), uint64(n), counts, lists, symbols, weights)
        if status != OK:
            return status
    for s in range(n):
        after = uint64(0)
        if n_classes:
            number = get_number(state, data, numbers, CLASS + np.int64(rarity[s]))
            if number >= uint64(n_classes) or overrun(state):
                return BAD_SYMBOL
            after = uint64(places[uint64(RECENT_LISTS) + number])
        first[s] = after
        size = get_number(state, data, numbers, SIZE + BY_LAST)
        if size > uint64(0):
            first[s] = counts[0]
            status = read_list(state, data, numbers, BY_LAST, size, after, uint64(n), counts, lists, symbols, weights)
            if status != OK:
                return status
    i = 0
    for s in range(n):
        size = get_number(state, data, numbers, PAIRS + np.int64(rarity[s]))
        if size > uint64(pairs.shape[0] - i) or overrun(state):
            return BAD_COUNT
        for _ in range(size):
            p1 = uint64(get_symbol(state, data, lists, first[s]))
            if p1 >= uint64(n) or overrun(state):
                return BAD_SYMBOL
            pairs[i, 0], pairs[i, 1] = (uint64(s) << uint64(20)) | p1, counts[0]
            i += 1
            size_of = get_number(state, data, numbers, SIZE + BY_TWO)
            after = uint64(first[p1])
            status = read_list(state, data, numbers, BY_TWO, size_of, after, uint64(n), counts, lists, symbols, weights)
            if status != OK:
                return status
    if i != pairs.shape[0] or counts[0] * uint64(UNIT) != uint64(lists.size) or counts[1] != uint64(symbols.size):
        return BAD_COUNT
    return OVERRUN if overrun(state) or state[2] < uint64(data.size) else OK
