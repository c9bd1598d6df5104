"""Decode whole columns by a context model (docs/FORMAT.md, `context`). Imports numpy, numba and kernels only.

Several rows, each in a **lane**, are decoded by turns: what one lane will look up is on its way from memory while the
others decode.
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
from tokzip_core.kernels.context_coder import FULL, HEAD, NONE, UNIT, find, hashed
from tokzip_core.kernels.context_memory import prefetch

OK, OVERRUN, TOO_FAR, NO_ROOM = 0, 1, 2, 3
LANES = 6
RING = 2 * WINDOW  # recent tokens; every token is written, without a branch, where no distance reaches, and some stay
ROOM_AT_FIRST = 1100  # tokens a lane; no power of two, so that lanes do not compete for the same lines of the cache
# What is kept of a lane.
ROW, CODE, WIDTH, BYTE, STOP, START, HERE, BEGIN, ROOM, FOUND, LENGTH, HISTORY, KEPT, P1, P2, RARITY = range(16)
TOKEN, LISTED, PAIR, FIRST, FIELDS = 16, 17, 18, 19, 20  # LISTED: where in the lists the token is, or 0


@kernel
def refill(data, at, stop, code, width):  # type: ignore[no-untyped-def]
    """Take in bytes until `width` is 2^48 or more; zeros after `stop`."""
    more = uint64(0)
    if at + uint64(1) < stop:
        more = (uint64(data[at]) << uint64(8)) | uint64(data[at + uint64(1)])
    elif at < stop:
        more = uint64(data[at]) << uint64(8)
    bits = uint64(16) if width < uint64(1 << 48) else uint64(0)  # no branch, as none can be foretold
    code, width, at = (code << bits) | (more >> (uint64(16) - bits)), width << bits, at + (bits >> uint64(3))
    while width < uint64(1 << 48):
        more = uint64(data[at]) << uint64(8) if at < stop else uint64(0)
        more |= uint64(data[at + uint64(1)]) if at + uint64(1) < stop else uint64(0)
        code, width, at = (code << uint64(16)) | more, width << uint64(16), at + uint64(2)
    return at, code, width


@kernel
def start_row(state, k, first, data, begin, stop, row):  # type: ignore[no-untyped-def]
    """Make lane `k` stand before the first token of row `row`, blob `data[begin:stop]`, not empty."""
    code = uint64(0)
    for i in range(begin, begin + uint64(8)):
        code = (code << uint64(8)) | (uint64(data[i]) if i < stop else uint64(0))
    state[k, ROW], state[k, CODE], state[k, WIDTH], state[k, BYTE], state[k, STOP] = (
        row,
        code,
        FULL,
        begin + uint64(8),
        stop,
    )
    state[k, START], state[k, FIRST] = state[k, HERE], uint64(first[0] >> uint32(3)) * uint64(UNIT)
    for field in (FOUND, LENGTH, HISTORY, KEPT, P1, P2, RARITY):
        state[k, field] = 0


@kernel
def pick(lists, here, weight):  # type: ignore[no-untyped-def]
    """Of the list at `lists[here]`: the entry at `weight`, the weight before it, and its q."""
    begin, c, i = uint64(0), here + uint64(HEAD), uint64(0)
    last = uint64(lists[c])
    while weight >= last >> uint64(5):
        i += ((last >> uint64(5)) - begin) >> (last & uint64(31))
        begin = last >> uint64(5)
        c += uint64(1)
        last = uint64(lists[c])
    q = last & uint64(31)
    among = (weight - begin) >> q
    return i + among, begin + (among << q), q


@kernel
def decode_rounds(  # type: ignore[no-untyped-def]
    data, starts, ends, lists, first, recents, flags, pairs, ids, state, live, by_one, by_two, ring, tokens, out,
    begins, stops, run,
):  # fmt: skip
    """Decode a token of each lane, round by round, until all rows are done, one is bad, or there is no room; a status.

    run: int64[4], how many lanes are live, the next row, how much `out` holds, the bad row. numba counts references
    within loops unless all arrays are arguments and every helper has one way out: that took most of the time.
    """
    rows = starts.size
    n, next_row, size, status = uint64(run[0]), run[1], run[2], OK
    room = out.size - size - LANES
    for x in range(n):
        room -= np.int64(state[live[x], HERE] - state[live[x], START])
    one, five, sixteen, low, unit_words = uint64(1), uint64(5), uint64(16), uint64(31), uint64(UNIT)
    pair_mask = uint64(pairs.size - 1)
    while n > 0 and status == OK:
        # The token just decoded takes its place, and what the next one needs is asked for.
        x = uint64(0)
        while x < n:
            k = live[x]
            token, symbol, row = uint32(state[k, TOKEN]), lists[state[k, LISTED]], state[k, ROW]
            token = symbol if state[k, LISTED] != 0 else token
            if token == 0:
                if row != uint64(rows):
                    at, _, _ = refill(data, state[k, BYTE], state[k, STOP], state[k, CODE], state[k, WIDTH])
                    if at > state[k, STOP] + uint64(8):
                        run[3] = row
                        return OVERRUN
                    begins[row] = size
                    begin = state[k, BEGIN]
                    for i in range(begin, begin + state[k, HERE] - state[k, START]):
                        token = tokens[i]
                        out[size] = np.int32(ids[token - uint32(2)] if token < uint32(UNKNOWN) else ~token)
                        size += 1
                    stops[row] = size
                while next_row < rows and starts[next_row] == ends[next_row]:
                    begins[next_row] = stops[next_row] = size
                    next_row += 1
                if next_row == rows:
                    n -= one
                    state[k, HERE] = state[k, START]
                    live[x] = live[n]
                    live[n] = k
                    continue
                state[k, HERE] += one  # so that no place is 0, and none that of another row
                start_row(state, k, first, data, uint64(starts[next_row]), uint64(ends[next_row]), next_row)
                next_row += 1
            else:
                if state[k, BYTE] > state[k, STOP] + uint64(8):
                    run[3] = row
                    return OVERRUN
                i = state[k, HERE] - state[k, START]
                tokens[state[k, BEGIN] + i] = token
                state[k, HERE] += one
                room -= 1
                if i + one == state[k, ROOM] or room <= 0:
                    status = NO_ROOM
                p1 = uint64(token) if token < uint32(UNKNOWN) else one
                state[k, P2], state[k, P1] = state[k, P1], p1
                packed = uint64(first[p1])
                state[k, FIRST], state[k, RARITY] = (packed >> uint64(3)) * unit_words, packed & uint64(7)
                ring[k, state[k, KEPT] & uint64(RING - 1)] = token
                state[k, KEPT] += uint64(packed & uint64(7) >= uint64(COMMON))
            _, slot = hashed(state[k, P2], state[k, P1])
            prefetch(pairs, slot & pair_mask)
            prefetch(lists, state[k, FIRST])
            x += one
        for x in range(n):
            k = live[x]
            place = find(pairs, state[k, P2], state[k, P1])
            state[k, PAIR] = place
            if place != NONE:
                prefetch(lists, uint64(place) * unit_words)
            shift = state[k, BEGIN] - state[k, START]
            state[k, FOUND], state[k, LENGTH] = match(
                tokens, shift, state[k, START], state[k, HERE], state[k, FOUND], state[k, LENGTH], by_one, by_two, k
            )
        for x in range(n):
            k = live[x]
            at, stop, code, width = state[k, BYTE], state[k, STOP], state[k, CODE], state[k, WIDTH]
            token, listed, hit = uint32(0), uint64(0), False
            if state[k, FOUND] != 0:
                at, code, width = refill(data, at, stop, code, width)
                token = tokens[state[k, FOUND] + state[k, BEGIN] - state[k, START]]
                context = flag_context(state[k, LENGTH], token, state[k, RARITY], state[k, HISTORY], first)
                part = (width >> sixteen) * flags[context]
                hit = code < part
                state[k, HISTORY] = state[k, HISTORY] * uint64(2) + uint64(hit)
                if hit:
                    width = part
                    state[k, FOUND] += one
                    state[k, LENGTH] = min(state[k, LENGTH] + one, uint64(LONGEST))
                else:
                    code -= part
                    width -= part
                    state[k, FOUND] = 0
            if not hit:
                in_chain = state[k, PAIR] == NONE
                here = state[k, FIRST] if in_chain else state[k, PAIR] * unit_words
                while True:
                    at, code, width = refill(data, at, stop, code, width)
                    unit = (width >> uint64(32)) * uint64(lists[here])
                    packed = uint64(lists[here + one])
                    held = unit * (packed >> five)
                    if code < held:
                        i, begin, q = pick(lists, here, code // unit)
                        code -= begin * unit
                        width = unit << q
                        listed = here + uint64(HEAD) + (packed & low) + i
                        prefetch(lists, listed)
                        break
                    bound = unit * uint64(lists[here + uint64(3)])
                    if code < bound:
                        at, code, width = refill(data, at, stop, code - held, bound - held)
                        kept = state[k, KEPT]
                        here = uint64(recents[recent_list(kept)]) * unit_words
                        unit = (width >> uint64(32)) * uint64(lists[here])
                        weight = code // unit
                        i, q = kept, uint64(0)
                        if weight < uint64(lists[here + one]) >> five:
                            i, begin, q = pick(lists, here, weight)
                            code -= begin * unit
                            width = unit << q
                        if i >= kept:
                            run[3] = state[k, ROW]
                            return TOO_FAR
                        token = ring[k, (kept - one - i) & uint64(RING - 1)]
                        break
                    code -= bound
                    width -= bound
                    if in_chain and here == 0:  # after the escape of the list of all, 31 bits
                        value = uint64(0)
                        for bits in (sixteen, uint64(15)):
                            at, code, width = refill(data, at, stop, code, width)
                            width >>= bits
                            part = min(code // width, (one << bits) - one)
                            code = min(code - part * width, width - one)
                            value = (value << bits) | part
                        token = ~uint32(value)
                        break
                    here = uint64(lists[here + uint64(2)]) * unit_words if in_chain else state[k, FIRST]
                    in_chain = True
            state[k, BYTE], state[k, CODE], state[k, WIDTH] = at, code, width
            state[k, TOKEN], state[k, LISTED] = token, listed
    run[0], run[1], run[2] = n, next_row, size
    return status


@kernel
def decode_rows(data, starts, ends, lists, first, recents, flags, pairs, ids):  # type: ignore[no-untyped-def]
    """Decode blobs `data[starts[i]:ends[i]]`: (status, the bad row if it is not OK, tokens, each row's end in them).

    What is allocated grows with what is decoded, and no blob gives more tokens than its bytes can hold.
    """
    rows = starts.size
    lanes = min(LANES, rows)
    begins, stops, run = np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.array([lanes, 0, 0, 0])
    out = np.empty(256 + 2 * (ends - starts).sum(), np.int32)
    state, live = np.zeros((lanes, FIELDS), np.uint64), np.arange(lanes).astype(np.uint64)
    by_one, by_two = np.zeros((lanes, ONE), np.uint32), np.zeros((lanes, TWO), np.uint32)
    ring, tokens = np.zeros((lanes, RING), np.uint32), np.empty(lanes * ROOM_AT_FIRST, np.uint32)
    for k in range(lanes):
        state[k, ROW], state[k, BEGIN], state[k, ROOM] = rows, k * ROOM_AT_FIRST, ROOM_AT_FIRST
    while True:
        status = decode_rounds(
            data, starts, ends, lists, first, recents, flags, pairs, ids, state, live, by_one, by_two, ring, tokens,
            out, begins, stops, run,
        )  # fmt: skip
        if status != NO_ROOM:
            break
        used = run[2]
        for k in range(lanes):
            held, at = np.int64(state[k, HERE] - state[k, START]), np.int64(state[k, BEGIN])
            used += held
            if held == np.int64(state[k, ROOM]):
                longer = np.empty(tokens.size + 2 * held, np.uint32)
                longer[: tokens.size] = tokens
                longer[tokens.size : tokens.size + held] = tokens[at : at + held]
                state[k, BEGIN], state[k, ROOM] = tokens.size, 2 * held
                tokens = longer
        if used + LANES > out.size:
            grown = np.empty(2 * out.size, np.int32)
            grown[: run[2]] = out[: run[2]]
            out = grown
    sizes = np.cumsum(stops - begins)
    ordered = np.empty(sizes[-1] if rows and status == OK else 0, np.int32)
    if status == OK:
        for r in range(rows):
            ordered[sizes[r] - (stops[r] - begins[r]) : sizes[r]] = out[begins[r] : stops[r]]
    return status, run[3], ordered, sizes
