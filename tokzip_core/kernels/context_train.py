"""Passes over the sampled rows for models/context_train.py. Imports numpy, numba and kernels only.

`stream` (int32) holds the sample as symbols, each row ended by a 0.
"""

from __future__ import annotations

import numpy as np
from numba import uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.context import COMMON, LONGEST, ONE, TWO, WINDOW, flag_context, match
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
def count_matches(stream, frequency, held, counts):  # type: ignore[no-untyped-def]
    """Mark in `held` (bool) the tokens that a match foretells; count in `counts` (int64[flags, 2]) misses and hits."""
    by_two, by_one = np.full(TWO, -1, np.int32), np.full(ONE, -1, np.int32)
    row, found, length, history, p1 = 0, -1, 0, 0, 0
    for i in range(stream.size):
        token = stream[i]
        found, length = match(stream, row, i, found, length, by_two, by_one)
        held[i] = False
        if found >= 0:
            hit = stream[found] == token
            counts[flag_context(length, stream[found], p1, history, frequency), np.int64(hit)] += 1
            history = history * 2 + hit
            held[i] = hit
            if hit:
                found, length = found + 1, min(length + 1, LONGEST)
            else:
                found = -1
        p1 = token
        if token == 0:
            row, found, length, history = i + 1, -1, 0, 0


@kernel
def choose_recent(stream, frequency, open_, costs, recent_costs, escape_costs, taken, counts):  # type: ignore[no-untyped-def]
    """Mark in `taken` the tokens that are cheaper as recent ones, of those that `open_` marks.

    costs: float32, bits otherwise. recent_costs: float32[10, 256] by list and distance; escape_costs: float32[10].
    counts: int64[10, 257], how often each distance was taken, and, last, the escape.
    """
    seen = np.zeros(frequency.size, np.int64)
    kept, kept_before = 0, 0
    for i in range(stream.size):
        token = stream[i]
        taken[i] = False
        recent = min(kept - kept_before, WINDOW)
        if open_[i] and recent > 0:
            at = 1
            while (recent >> at) != 0 and at < 9:
                at += 1
            away = WINDOW
            if seen[token] > kept_before:
                away = kept - seen[token]
            if away < recent and recent_costs[at, away] < costs[i] + escape_costs[at]:
                taken[i] = True
                counts[at, away] += 1
            else:
                counts[at, 256] += 1
        if token == 0:
            kept_before = kept
        elif frequency[token] >= COMMON:
            kept += 1
            seen[token] = kept


@kernel
def chain_costs(lasts, symbols, first, after, table, entry_costs, escape_costs, all_costs, wanted, costs):  # type: ignore[no-untyped-def]  # fmt: skip
    """The bits of each symbol after a last one where `wanted`, by list `first[last]` and those it goes on with.

    `after` leads to NONE, where `all_costs` hold.
    """
    for i in range(lasts.size):
        if not wanted[i]:
            continue
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
def pair_costs(p2, p1, symbols, pairs, table, entry_costs, escape_costs, wanted, inside, costs):  # type: ignore[no-untyped-def]  # fmt: skip
    """Where `wanted`, mark in `inside` what the list of the last two has; `costs`: the bits that this takes."""
    for i in range(symbols.size):
        inside[i] = False
        costs[i] = 0
        if wanted[i]:
            at = find(pairs, p2[i], p1[i])
            if at != NONE:
                entry = find(table, at, symbols[i])
                inside[i] = entry != NONE
                costs[i] = entry_costs[entry] if entry != NONE else escape_costs[at]


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
