"""What writer and reader of the context model share: matches within a row. Imports numpy, numba and kernels only.

Tokens stand as symbols (uint32): 0 is the row's end, 1 an unknown id among contexts, 2 … n - 1 the known ids in order.
An unknown id itself is held as the complement of its value, so from UNKNOWN on. For the arrays of a codebook see
models/context.py.
"""

from __future__ import annotations

import numpy as np
from numba import uint32, uint64

from tokzip_core.kernels import inline, kernel

TWO = 1 << 12  # places by the last two tokens
ONE = 1 << 11  # places by the last
WINDOW = 256  # recent tokens kept
COMMON = 3  # tokens of a rarity under this are not kept among the recent
LONGEST = 15  # of the matches that are told apart
UNKNOWN = 1 << 31
LENGTH_CLASS = np.array([0, 0, 1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6], np.uint64)


@kernel
def slots(a, b):  # type: ignore[no-untyped-def]
    """Where the place after a last token `a` is kept, and that after the last two, `b` and `a`."""
    two = (uint64(a) * uint64(0x9E3779B1) + uint64(b) * uint64(0x85EBCA77)) >> uint64(12)
    return uint64(a) & uint64(ONE - 1), two & uint64(TWO - 1)


@kernel
def agreeing(tokens, here, there, most):  # type: ignore[no-untyped-def]
    """How many tokens before `here` and `there` are equal, up to `most`."""
    n = uint64(0)
    while n < most and tokens[here - n - uint64(1)] == tokens[there - n - uint64(1)]:
        n += uint64(1)
    return n


@inline  # a call would count references to its three arrays, which takes as long as half a token
def match(tokens, shift, row, i, found, length, by_one, by_two, lane):  # type: ignore[no-untyped-def]
    """Where the tokens before place `i` stood last in this row: (the place after them or 0, how many of them agree).

    Place i is `tokens[i + shift]`, to be read though not yet known. found, length: the match that the token before has
    confirmed, or found = 0. What is kept (uint32, `by_one[lane]`, `by_two[lane]`) and does not lie in the row, which
    begins at `row`, is another row's.
    """
    one, two, n, here = uint64(1), uint64(2), i - row, i + shift
    by_a, by_ba = slots(tokens[here - min(n, one)], tokens[here - min(n, two)])
    after_one, after_two = uint64(by_one[lane, by_a]), uint64(by_two[lane, by_ba])
    by_one[lane, by_a] = i
    by_two[lane, by_ba] = i
    longest = min(after_two - row, uint64(LONGEST)) if found == 0 and after_two > row + one else uint64(0)
    long = agreeing(tokens, here, after_two + shift, longest)
    short = agreeing(tokens, here, after_one + shift, one if found == 0 and after_one > row else uint64(0))
    if long >= two:
        found, length = after_two, long
    elif short == one:
        found, length = after_one, one
    return found, length


@kernel
def flag_context(length, predicted, rarity, history, first):  # type: ignore[no-untyped-def]
    """Which flag tells whether a match holds; rarity: that of the last token; first: place << 3 | rarity by symbol."""
    among = rarity if length == uint64(1) else history & uint64(7)
    of_predicted = uint64(first[predicted if predicted < uint32(UNKNOWN) else uint32(1)]) & uint64(7)
    return (LENGTH_CLASS[length] * uint64(8) + of_predicted) * uint64(8) + among


@kernel
def recent_list(n):  # type: ignore[no-untyped-def]
    """The number of the list of distances among `n` > 0 recent tokens: floor(log2(min(n, 256))) + 1."""
    number = uint64(1)
    while (n >> number) != 0 and number < uint64(9):
        number += uint64(1)
    return number
