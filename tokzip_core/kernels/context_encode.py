"""Encode whole columns by a context model (docs/FORMAT.md, `context`). Imports numpy, numba and kernels only.

Look-ups are passes of their own over many rows, each asking for its memory some steps ahead; then the coder runs.
"""

from __future__ import annotations

import numpy as np
from numba import uint32, uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.context import (
    COMMON,
    LONGEST,
    ONE,
    TWO,
    UNKNOWN,
    WINDOW,
    flag_context,
    match,
    recent_list,
)
from tokzip_core.kernels.context_coder import (
    NONE,
    UNIT,
    find,
    finish_writing,
    hashed,
    put_bits,
    put_entry,
    put_escape,
    put_flag,
    put_recent,
    start_writing,
)
from tokzip_core.kernels.context_memory import prefetch

AHEAD = 12  # steps


@kernel
def to_symbols(values, starts, ends, dense, ids, tokens):  # type: ignore[no-untyped-def]
    """Ids (uint32) of rows to `tokens`, a 0 after each row. dense: symbols by id, 0 if unknown, up to a bounded id."""
    i = 0
    for r in range(starts.size):
        for k in range(starts[r], ends[r]):
            value = values[k]
            symbol = uint32(0)
            if value < dense.size:
                symbol = dense[value]
            else:
                at = np.searchsorted(ids, value)
                if at < ids.size and ids[at] == value:
                    symbol = uint32(at + 2)
            tokens[i] = symbol if symbol else ~value
            i += 1
        tokens[i] = 0
        i += 1
    return i


@kernel
def look_up(tokens, n, lists, weights, first, pairs, table, by_pair, of_pair, of_first, of_next):  # type: ignore[no-untyped-def]
    """For each of `n` tokens: the place of the list by the last two, and its weight there and by the last token.

    of_pair, of_first, of_next: the weight before it << 5 | q, or NONE, in the list by two, in the first by one, and,
    unless it is in these, in the list that that one goes on with.
    """
    symbols, firsts = np.empty(n, np.uint32), np.empty(n, np.uint32)
    before = np.zeros(n + 1, np.uint32)  # before[i]: the symbol before token i in its row
    two_before = np.zeros(n + 1, np.uint32)
    pair_mask, mask = uint64(pairs.size - 1), uint64(table.size - 1)
    for j in range(n + AHEAD):
        if j < n:
            symbols[j] = tokens[j] if tokens[j] < uint32(UNKNOWN) else uint32(1)
            before[j + 1] = symbols[j]
            two_before[j + 1] = before[j] if symbols[j] else uint32(0)
            firsts[j] = first[before[j]] >> uint32(3)
            _, slot = hashed(two_before[j], before[j])
            prefetch(pairs, slot & pair_mask)
            prefetch(lists, uint64(firsts[j]) * uint64(UNIT))
        if j >= AHEAD:
            i = j - AHEAD
            by_pair[i] = find(pairs, two_before[i], before[i])
    for j in range(n + AHEAD):
        if j < n:
            if by_pair[j] != NONE:
                prefetch(lists, uint64(by_pair[j]) * uint64(UNIT))
                _, slot = hashed(by_pair[j], symbols[j])
                prefetch(table, slot & mask)
            _, slot = hashed(firsts[j], symbols[j])
            prefetch(table, slot & mask)
        if j >= AHEAD:
            i = j - AHEAD
            of_pair[i] = NONE if by_pair[i] == NONE else find(table, by_pair[i], symbols[i])
            of_first[i] = NONE
            if of_pair[i] != NONE:
                prefetch(weights, uint64(of_pair[i]))
            else:
                of_first[i] = find(table, firsts[i], symbols[i])
                if of_first[i] != NONE:
                    prefetch(weights, uint64(of_first[i]))
    for j in range(n + AHEAD):
        if j < n:
            if of_pair[j] != NONE:
                of_pair[j] = weights[of_pair[j]]
            elif of_first[j] != NONE:
                of_first[j] = weights[of_first[j]]
            else:
                firsts[j] = lists[uint64(firsts[j]) * uint64(UNIT) + uint64(2)]
                _, slot = hashed(firsts[j], symbols[j])
                prefetch(table, slot & mask)
        if j >= AHEAD:
            i = j - AHEAD
            of_next[i] = NONE
            if of_pair[i] == NONE and of_first[i] == NONE:
                entry = find(table, firsts[i], symbols[i])
                if entry != NONE:
                    of_next[i] = weights[entry]


@kernel
def encode_rows(  # type: ignore[no-untyped-def]
    values, starts, ends, dense, ids, lists, weights, first, recents, recent_entries, flags, pairs, table, all_weights,
    out, out_ends,
):  # fmt: skip
    """Write the blobs of rows `values[starts[i]:ends[i]]` into `out` (uint8, 32 bytes a row and token), and their ends.

    values: uint32 ids; dense, ids: see `to_symbols`. table: entries by (place, symbol), but those of the list of all,
    whose weights are in `all_weights` by symbol. recent_entries: int64[11], the first entry of lists 1 to 10.
    """
    room = (ends - starts).sum() + starts.size
    tokens = np.empty(room, np.uint32)
    n = to_symbols(values, starts, ends, dense, ids, tokens)
    by_pair, of_pair = np.empty(n, np.uint32), np.empty(n, np.uint32)
    of_first, of_next = np.empty(n, np.uint32), np.empty(n, np.uint32)
    look_up(tokens, n, lists, weights, first, pairs, table, by_pair, of_pair, of_first, of_next)
    state = np.zeros(4, np.uint64)
    by_one, by_two = np.zeros((1, ONE), np.uint32), np.zeros((1, TWO), np.uint32)
    seen = np.zeros(first.size, np.uint32)  # 1 + how many recent tokens there were, over all rows, when this came
    kept = uint64(0)
    i, one = uint64(0), uint64(1)
    for r in range(starts.size):
        begin = state[2]
        if starts[r] == ends[r]:
            out_ends[r] = begin
            i += one
            continue
        start_writing(state)
        row, kept_before, history, found, length = i, kept, uint64(0), uint64(0), uint64(0)
        p1, rarity = uint64(0), uint64(0)
        while True:
            token = tokens[i]
            found, length = match(tokens, uint64(0), row, i, found, length, by_one, by_two, 0)
            hit = False
            if found != 0:
                predicted = tokens[found]
                hit = predicted == token
                put_flag(state, out, hit, flags[flag_context(length, predicted, rarity, history, first)])
                history = history * uint64(2) + uint64(hit)
                if hit:
                    found, length = found + one, min(length + one, uint64(LONGEST))
                else:
                    found = uint64(0)
            if not hit and by_pair[i] != NONE:
                if of_pair[i] != NONE:
                    put_entry(state, out, lists, by_pair[i], of_pair[i])
                    hit = True
                else:
                    put_escape(state, out, lists, by_pair[i])
            if not hit:
                place, weight = first[p1] >> uint32(3), of_first[i]
                if place == 0:
                    weight = all_weights[token] if token < uint32(UNKNOWN) else NONE
                while True:
                    at = uint64(place) * uint64(UNIT)
                    held, bound = uint64(lists[at + one]) >> uint64(5), uint64(lists[at + uint64(3)])
                    if bound > held and token < uint32(UNKNOWN) and uint64(seen[token]) > kept_before:
                        away, number = kept - uint64(seen[token]), recent_list(kept - kept_before)
                        entry = uint64(recent_entries[number]) + away
                        if away < uint64(WINDOW) and entry < uint64(recent_entries[number + one]):
                            recip = np.float64(lists[uint64(recents[number]) * uint64(UNIT)]) / 2.0**32
                            recent = np.float64(bound - held) * np.float64(one << uint64(weights[entry] & 31)) * recip
                            other = weight
                            share = 1.0
                            if weight == NONE:
                                other = all_weights[token]
                                share = (
                                    (2.0**32 / np.float64(lists[at]) - np.float64(bound))
                                    * np.float64(lists[0])
                                    / 2.0**32
                                )
                            if recent > share * np.float64(one << uint64(other & uint32(31))):
                                put_recent(state, out, lists, place)
                                put_entry(state, out, lists, recents[number], weights[entry])
                                break
                    if weight != NONE:
                        put_entry(state, out, lists, place, weight)
                        break
                    put_escape(state, out, lists, place)
                    if place == 0:
                        put_bits(state, out, uint64(~token) >> uint64(15), uint64(16))
                        put_bits(state, out, uint64(~token) & uint64(0x7FFF), uint64(15))
                        break
                    place, weight = lists[at + uint64(2)], of_next[i]
                    if place == 0:
                        weight = all_weights[token] if token < uint32(UNKNOWN) else NONE
            i += one
            if token == 0:
                break
            p1 = uint64(token) if token < uint32(UNKNOWN) else one
            rarity = uint64(first[p1]) & uint64(7)
            if rarity >= uint64(COMMON):
                kept += one
                if token < uint32(UNKNOWN):
                    seen[token] = kept
        finish_writing(state, out)
        if state[2] == begin:  # nothing but zeros: an empty blob is an empty row
            out[begin] = 0
            state[2] += one
        out_ends[r] = state[2]
