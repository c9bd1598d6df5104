"""Passes over the sampled rows for models/context_train.py. Imports numpy, numba and kernels only.

`stream` (int32) holds the sample as symbols, each row ended by a 0.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.context import COMMON, LONGEST, ONE, TWO, WINDOW, flag_context, match, recent_list
from tokzip_core.kernels.context_coder import NONE, find


@kernel
def row_digests(values, starts, ends, digests):  # type: ignore[no-untyped-def]
    """A 64-bit digest of each row (multiply and mix, as in splitmix64), by which rows are sampled and put in order."""
    for r in range(starts.size):
        h = uint64(ends[r] - starts[r])
        for i in range(starts[r], ends[r]):
            h = (h ^ uint64(values[i])) * uint64(0xBF58476D1CE4E5B9)
            h ^= h >> uint64(29)
        h *= uint64(0x94D049BB133111EB)
        digests[r] = h ^ (h >> uint64(32))


@kernel
def count_matches(stream, rarity, held, counts):  # type: ignore[no-untyped-def]
    """Mark in `held` (bool) the tokens that a match foretells; count in `counts` (int64[flags, 2]) misses and hits.

    rarity: uint32 by symbol.
    """
    by_one, by_two = np.zeros((1, ONE), np.uint32), np.zeros((1, TWO), np.uint32)
    row, found, length, history, p1, one = uint64(0), uint64(0), uint64(0), uint64(0), uint64(0), uint64(1)
    for k in range(stream.size):
        i = uint64(k)
        token = stream[i]
        found, length = match(stream, uint64(0), row, i, found, length, by_one, by_two, 0)
        held[i] = False
        if found != 0:
            hit = stream[found] == token
            counts[flag_context(length, stream[found], uint64(rarity[p1]), history, rarity), np.int64(hit)] += 1
            history = history * uint64(2) + uint64(hit)
            held[i] = hit
            found, length = found + one if hit else uint64(0), min(length + one, uint64(LONGEST))
        p1 = uint64(token)
        if token == 0:
            row, found, history = i + one, uint64(0), uint64(0)


@kernel
def choose_recent(stream, rarity, classes, costs, distance_costs, recent_costs, taken, counts, by_class):  # type: ignore[no-untyped-def]  # fmt: skip
    """Mark in `taken` the tokens that are cheaper as recent ones, of those with classes[i] >= 0.

    classes: int32, the class of the last symbol; costs: float32, bits otherwise. distance_costs: float32[10, 256] by
    list and distance; recent_costs: float32 by class. Counts what is taken in `counts` (int64[10, 256]) and `by_class`.
    """
    seen = np.zeros(rarity.size, np.int64)
    kept, kept_before = 0, 0
    for i in range(stream.size):
        token = stream[i]
        taken[i] = False
        if classes[i] >= 0 and seen[token] > kept_before:
            away = kept - seen[token]
            if away < WINDOW:
                at = recent_list(uint64(kept - kept_before))
                if distance_costs[at, away] + recent_costs[classes[i]] < costs[i]:
                    taken[i] = True
                    counts[at, away] += 1
                    by_class[classes[i]] += 1
        if token == 0:
            kept_before = kept
        elif rarity[token] >= COMMON:
            kept += 1
            seen[token] = kept


@kernel
def chain_costs(lasts, symbols, first, after, table, entry_costs, escape_costs, all_costs, costs):  # type: ignore[no-untyped-def]
    """The bits of each symbol after a last one, by list `first[last]` and those it goes on with.

    `after` leads to NONE, where `all_costs` hold.
    """
    for i in range(lasts.size):
        at, cost = first[lasts[i]], np.float32(0)
        while at != NONE:
            entry = find(table, at, symbols[i])
            if entry != NONE:
                cost += entry_costs[entry]
                break
            cost += escape_costs[at]
            at = after[at]
        if at == NONE:
            cost += all_costs[symbols[i]]
        costs[i] = cost


@kernel
def list_costs(numbers, symbols, table, entry_costs, escape_costs, inside, costs):  # type: ignore[no-untyped-def]
    """Mark in `inside` the symbols that are in list numbers[i], and give the bits that these or the escapes take.

    numbers: int32, -1 for no list.
    """
    for i in range(symbols.size):
        inside[i] = False
        costs[i] = 0
        if numbers[i] >= 0:
            entry = find(table, numbers[i], symbols[i])
            inside[i] = entry != NONE
            costs[i] = entry_costs[entry] if entry != NONE else escape_costs[numbers[i]]


@kernel
def assign_classes(begins, symbols, counts, logs, classes):  # type: ignore[no-untyped-def]
    """Give each context (entries `begins[w]` … of `symbols`, `counts`) the class that makes its successors likeliest.

    logs: float32[symbols, classes]; classes: int32 by context. Returns how many changed.
    """
    k, changed = logs.shape[1], 0
    scores = np.zeros(k, np.float32)
    for w in range(begins.size - 1):
        if begins[w] == begins[w + 1]:
            continue
        scores[:] = 0
        for j in range(begins[w], begins[w + 1]):
            weight, row = np.float32(counts[j]), logs[symbols[j]]
            for c in range(k):
                scores[c] += weight * row[c]
        best = 0
        for c in range(1, k):
            if scores[c] > scores[best]:
                best = c
        changed += best != classes[w]
        classes[w] = best
    return changed
