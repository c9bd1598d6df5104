"""Write and read the body of a `context` codebook (docs/FORMAT.md). Imports numpy, numba and kernels only.

Everything goes through the coder of kernels/context_coder.py. A list's symbols are coded by the list that it goes on
with, so that an entry costs what it is worth there.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.context_coder import (
    NONE,
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

# Contexts of adaptive numbers; to some is added a frequency class, the kind of list, or the kind and the last q.
CONTEXTS = 256
GAP, FREQUENCY, Q, SIZE, ESCAPE, FIRST, STEP, CLASS, PAIRS = 0, 1, 10, 20, 30, 40, 50, 220, 230


@kernel
def new_numbers():  # type: ignore[no-untyped-def]
    return np.full((CONTEXTS, 33), uint64(32768))


@kernel
def escape_weight(code):  # type: ignore[no-untyped-def]
    """Quarter steps of a power of two: 1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 10, …"""
    return ((uint64(4) + (uint64(code) & uint64(3))) << (uint64(code) >> uint64(2))) >> uint64(2)


@kernel
def write_list(state, out, numbers, kind, at, escape, first_entry, symbols, weights, heads, table):  # type: ignore[no-untyped-def]
    """List `at`, of entries `first_entry[at]` to `first_entry[at + 1]`; `escape`: the code of its escape's weight."""
    begin, end = first_entry[at], first_entry[at + 1]
    put_number(state, out, numbers, SIZE + kind, uint64(end - begin))
    put_number(state, out, numbers, ESCAPE + kind, uint64(escape))
    last = uint64(0)
    for entry in range(begin, end):
        q = uint64(weights[entry]) & uint64(31)
        if entry == begin:
            put_number(state, out, numbers, FIRST + kind, q)
        else:
            put_number(state, out, numbers, STEP + 32 * kind + np.int64(last), last - q)
        last = q
        if kind != RECENT:
            put_symbol(state, out, heads, weights, table, heads[at, 3], symbols[entry])


@kernel
def write_body(  # type: ignore[no-untyped-def]
    ids, frequency, flags, first, n_classes, escapes, first_entry, symbols, weights, heads, pairs, pair_counts, table,
    out,
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
    n = frequency.size
    q_of = np.zeros(n, np.uint64)
    for entry in range(first_entry[0], first_entry[1]):
        q_of[symbols[entry]] = uint64(weights[entry]) & uint64(31)
    last = np.int64(0)
    for s in range(n):
        put_number(state, out, numbers, FREQUENCY + last, uint64(frequency[s]))
        last = np.int64(frequency[s])
        if s != 1:
            put_number(state, out, numbers, Q + last, q_of[s])
    put_number(state, out, numbers, ESCAPE, uint64(escapes[0]))
    for i in range(FLAGS):
        put_bits(state, out, uint64(flags[i]), uint64(8))
    at = 1
    for i in range(RECENT_LISTS + n_classes):
        kind = RECENT if i < RECENT_LISTS else BY_CLASS
        write_list(state, out, numbers, kind, at, escapes[at], first_entry, symbols, weights, heads, table)
        at += 1
    for s in range(n):
        own = first[s] == at
        if n_classes:
            of = heads[at, 3] if own else first[s]
            put_number(state, out, numbers, CLASS + np.int64(frequency[s]), uint64(of) - uint64(FIRST_CLASS))
        if own:
            write_list(state, out, numbers, BY_LAST, at, escapes[at], first_entry, symbols, weights, heads, table)
            at += 1
        else:
            put_number(state, out, numbers, SIZE + BY_LAST, uint64(0))
    i = 0
    for s in range(n):
        put_number(state, out, numbers, PAIRS + np.int64(frequency[s]), uint64(pair_counts[s]))
        for _ in range(pair_counts[s]):
            put_symbol(state, out, heads, weights, table, first[s], pairs[i])
            write_list(state, out, numbers, BY_TWO, at, escapes[at], first_entry, symbols, weights, heads, table)
            at += 1
            i += 1
    finish_writing(state, out)
    return state[2]


@kernel
def read_list(state, data, numbers, kind, size, after, n, counts, heads, classes, symbols, weights):  # type: ignore[no-untyped-def]
    """The list after the last one, of `size` entries, which goes on with list `after`; a status.

    counts: int64[3], the lists, classes and entries so far.
    """
    at, k, entry = counts[0], counts[1], counts[2]
    if at >= heads.shape[0] or uint64(entry) + size > uint64(symbols.size):
        return BAD_COUNT
    code = get_number(state, data, numbers, ESCAPE + kind)
    if code >= uint64(96):
        return BAD_LIST
    escape, total, last = escape_weight(code), uint64(0), uint64(32)
    heads[at, 2] = k
    for _ in range(size):
        if last == uint64(32):
            q = get_number(state, data, numbers, FIRST + kind)
        else:
            q = last - get_number(state, data, numbers, STEP + 32 * kind + np.int64(last))
        if q > uint64(23):  # also where it is under 0
            return BAD_LIST
        symbol = uint64(entry - counts[2])  # of recent lists: how far back
        if kind != RECENT:
            symbol = uint64(get_symbol(state, data, heads, classes, symbols, after))
            if symbol >= n:
                return BAD_SYMBOL
        if q != last:
            if k >= classes.shape[0]:
                return BAD_COUNT
            classes[k, 1] = (uint64(entry) << uint64(5)) | q
            k += 1
        symbols[entry] = symbol
        weights[entry] = (total << uint64(5)) | q
        total += uint64(1) << q
        classes[k - 1, 0] = total
        entry += 1
        last = q
        if total > uint64(MOST_WEIGHT) or overrun(state):
            return BAD_LIST
    heads[at, 1], heads[at, 3] = total, after
    total += escape
    if total > uint64(MOST_WEIGHT) or escape * uint64(RAREST) < total:
        return BAD_LIST
    heads[at, 0] = uint64(1 << 32) // total if total > uint64(1) else uint64(0xFFFFFFFF)
    counts[0], counts[1], counts[2] = at + 1, k, entry
    return OK


@kernel
def read_all(state, data, numbers, n, frequency, counts, heads, classes, symbols, weights):  # type: ignore[no-untyped-def]
    """Frequency classes and list 0, whose entries come in order of symbols and are sorted by falling q; a status."""
    q_of = np.zeros(n, np.uint64)
    begins = np.zeros(26, np.int64)
    last = np.int64(0)
    for s in range(n):
        frequency_class = get_number(state, data, numbers, FREQUENCY + last)
        if frequency_class > uint64(7):
            return BAD_LIST
        last = np.int64(frequency_class)
        frequency[s] = last
        if s != 1:
            q_of[s] = get_number(state, data, numbers, Q + last)
            if q_of[s] > uint64(23) or overrun(state):
                return BAD_LIST
            begins[24 - np.int64(q_of[s])] += 1
    begins = np.cumsum(begins)
    for s in range(n):
        if s != 1:
            slot = 23 - np.int64(q_of[s])
            symbols[begins[slot]] = s
            begins[slot] += 1
    total, k, before = uint64(0), np.int64(0), uint64(32)
    for entry in range(n - 1):
        q = q_of[symbols[entry]]
        if q != before:
            if k >= classes.shape[0]:
                return BAD_COUNT
            classes[k, 1] = (uint64(entry) << uint64(5)) | q
            k += 1
        weights[entry] = (total << uint64(5)) | q
        total += uint64(1) << q
        classes[k - 1, 0] = total
        before = q
        if total > uint64(MOST_WEIGHT):
            return BAD_LIST
    code = get_number(state, data, numbers, ESCAPE)
    if code >= uint64(96):
        return BAD_LIST
    heads[0, 1], heads[0, 2], heads[0, 3] = total, 0, NONE
    escape = escape_weight(code)
    total += escape
    if total > uint64(MOST_WEIGHT) or escape * uint64(RAREST) < total:
        return BAD_LIST
    heads[0, 0] = uint64(1 << 32) // total
    counts[0], counts[1], counts[2] = 1, k, n - 1
    return OK


@kernel
def read_body(data, begin, ids, frequency, flags, first, n_classes, heads, classes, symbols, weights, pairs):  # type: ignore[no-untyped-def]
    """Fill the arrays, whose sizes are what the body has declared, from `data[begin:]`; a status.

    pairs: uint64, p2 << 21 | p1 of each list by two.
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
    n = frequency.size
    counts = np.zeros(3, np.int64)
    status = read_all(state, data, numbers, n, frequency, counts, heads, classes, symbols, weights)
    if status != OK:
        return status
    for i in range(FLAGS):
        flags[i] = get_bits(state, data, uint64(8))
    for i in range(RECENT_LISTS + n_classes):
        kind = RECENT if i < RECENT_LISTS else BY_CLASS
        size = get_number(state, data, numbers, SIZE + kind)
        status = read_list(
            state, data, numbers, kind, size, uint64(0), uint64(n), counts, heads, classes, symbols, weights
        )
        if status != OK:
            return status
    for s in range(n):
        after = uint64(0)
        if n_classes:
            after = get_number(state, data, numbers, CLASS + np.int64(frequency[s]))
            if after >= uint64(n_classes) or overrun(state):
                return BAD_SYMBOL
            after += uint64(FIRST_CLASS)
        first[s] = after
        size = get_number(state, data, numbers, SIZE + BY_LAST)
        if size > uint64(0):
            first[s] = counts[0]
            status = read_list(
                state, data, numbers, BY_LAST, size, after, uint64(n), counts, heads, classes, symbols, weights
            )
            if status != OK:
                return status
    i = 0
    for s in range(n):
        size = get_number(state, data, numbers, PAIRS + np.int64(frequency[s]))
        if size > uint64(pairs.size - i) or overrun(state):
            return BAD_COUNT
        for _ in range(size):
            p1 = uint64(get_symbol(state, data, heads, classes, symbols, uint64(first[s])))
            if p1 >= uint64(n) or overrun(state):
                return BAD_SYMBOL
            pairs[i] = (uint64(s) << uint64(21)) | p1
            i += 1
            size_of = get_number(state, data, numbers, SIZE + BY_TWO)
            after = uint64(first[p1])
            status = read_list(
                state, data, numbers, BY_TWO, size_of, after, uint64(n), counts, heads, classes, symbols, weights
            )
            if status != OK:
                return status
    if i != pairs.size or counts[0] != heads.shape[0] or counts[1] != classes.shape[0] or counts[2] != symbols.size:
        return BAD_COUNT
    return OVERRUN if overrun(state) or state[2] < uint64(data.size) else OK
