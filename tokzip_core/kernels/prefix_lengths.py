"""The dynamic programme that chooses code lengths. Imports numpy and kernels only."""

from __future__ import annotations

import numpy as np

from tokzip_core.kernels import kernel


@kernel
def priced_lengths(weights, max_length, price, lengths):  # type: ignore[no-untyped-def]
    """Choose the length of every symbol when a slot costs `price`; return (slots used, cost without the price).

    `weights` (int64[n]) falls; `lengths` (uint8[n]) is filled. A shortest path from the last symbol to the first:
    a step is one symbol of a length under 8, or one slot of a length of 8 and more, filled with symbols.
    """
    n = weights.size
    sums = np.zeros(n + 1, np.int64)
    for i in range(n):
        sums[i + 1] = sums[i] + weights[i]
    best = np.zeros(n + 1, np.int64)
    for i in range(n - 1, -1, -1):
        choice, least = 0, np.int64(2**62)
        for length in range(max_length, 7, -1):
            end = min(n, i + (1 << (length - 8)))
            cost = length * (sums[end] - sums[i]) + price + best[end]
            if cost < least:
                choice, least = length, cost
        if i < 255:
            for length in range(7, 0, -1):
                cost = length * weights[i] + (price << (8 - length)) + best[i + 1]
                if cost < least:
                    choice, least = length, cost
        best[i] = least
        lengths[i] = choice
    slots, bits, i = 0, np.int64(0), 0
    while i < n:
        length = lengths[i]
        end = i + 1 if length < 8 else min(n, i + (1 << (length - 8)))
        slots += 1 << (8 - length) if length < 8 else 1
        bits += length * (sums[end] - sums[i])
        lengths[i:end] = length
        i = end
    return slots, bits
