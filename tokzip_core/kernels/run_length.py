"""Runs of one token as run symbols, and back (transforms/run_length.py says what they mean). Imports kernels only."""

from __future__ import annotations

import numpy as np

from tokzip_core.kernels import kernel

LITERAL, FILL, ONES, HIGH = 0, 1, 1, 256  # offsets from the base: ONES + n repeats, HIGH + n * 256 repeats
LARGEST_HIGH = 15
SYMBOLS = HIGH + LARGEST_HIGH + 1
OK, NO_TOKEN, BAD_LITERAL, BAD_FILL, TOO_LONG = 0, 1, 2, 3, 4


@kernel
def collapse(values, starts, ends, base, pad, fill, shortest, out, out_ends, last):  # type: ignore[no-untyped-def]
    """Write rows `values[starts[i]:ends[i]]` into `out` with runs of `shortest[i]` repeats and more collapsed.

    values, out: uint32, `out` twice the size; shortest, last: int64, of each row; `last` is filled in: the repeats in
    the run that ends it.
    """
    at = 0
    for row in range(starts.size):
        i, end = starts[row], ends[row]
        last[row] = 0
        while i < end:
            token = values[i]
            following = i + 1
            while following < end and values[following] == token:
                following += 1
            repeats = following - i - 1
            i = following
            if repeats < shortest[row]:
                copies, repeats = 1 + repeats, 0
            else:
                copies = 1
                if following == end:
                    last[row] = repeats
                    if token == pad and end - starts[row] == fill:
                        out[at] = base + FILL
                        at += 1
                        break
            for _ in range(copies):
                if base <= token < base + SYMBOLS:
                    out[at] = base + LITERAL
                    out[at + 1] = token - base
                    at += 2
                else:
                    out[at] = token
                    at += 1
            while repeats > 255:
                high = min(repeats >> 8, LARGEST_HIGH)
                out[at] = base + HIGH + high
                at += 1
                repeats -= high << 8
            if repeats:
                out[at] = base + ONES + repeats
                at += 1
        out_ends[row] = at


@kernel
def measure(symbols, starts, ends, base, fill, most, out_ends):  # type: ignore[no-untyped-def]
    """The end of each row when expanded, into `out_ends`; return (fault, row). most: the tokens a row may have."""
    total = np.int64(0)
    for row in range(starts.size):
        i, end, size = starts[row], ends[row], np.int64(0)
        while i < end:
            offset = np.int64(symbols[i]) - base
            i += 1
            if offset < 0 or offset >= SYMBOLS:
                size += 1
            elif offset == LITERAL:
                if i == end or symbols[i] >= SYMBOLS:
                    return BAD_LITERAL, np.int64(row)
                size += 1
                i += 1
            elif offset == FILL:
                if i < end or size >= fill:
                    return BAD_FILL, np.int64(row)
                size = fill
            elif size == 0:
                return NO_TOKEN, np.int64(row)
            else:
                size += offset - ONES if offset <= HIGH else (offset - HIGH) << 8
            if size > most[row]:
                return TOO_LONG, np.int64(row)
        total += size
        out_ends[row] = total
    return OK, np.int64(0)


@kernel
def expand(symbols, starts, ends, base, pad, bounds, out):  # type: ignore[no-untyped-def]
    """Write the tokens of rows that `measure` passed into `out`, each up to its end in `bounds`."""
    at, token = np.int64(0), pad
    for row in range(starts.size):
        i, end = starts[row], ends[row]
        while i < end:
            offset = np.int64(symbols[i]) - base
            if offset < 0 or offset >= SYMBOLS or offset == LITERAL:
                token = symbols[i]
                if offset == LITERAL:
                    i += 1
                    token = np.int32(base + symbols[i])
                repeats = 1
            elif offset == FILL:
                token, repeats = pad, bounds[row] - at
            else:
                repeats = offset - ONES if offset <= HIGH else (offset - HIGH) << 8
            i += 1
            for j in range(at, at + repeats):
                out[j] = token
            at += repeats
