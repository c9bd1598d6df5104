"""A prefix-class code for each cluster of contexts, and one shared by all: build the tables. Imports numpy, coders.

A context is the cluster of the token before. An id without a code in its context is the context's escape, which
emits nothing and leads to the shared context, where every known id has a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokzip_core.coders.prefix import MAX_IDS, MAX_LENGTH
from tokzip_core.columns import Int32s, Int64s, UInt8s, UInt32s
from tokzip_core.errors import CorruptCodebookError

MAX_CLUSTERS = 1023
MAX_CELLS = 1 << 22
MAX_CELL_LENGTH = 16  # bits, of codes in a cluster
NUMBER_BITS = 20
# A symbol is emits << 31 | the next context << 20 | the number of its id. Two are no numbers:
ESCAPE, UNASSIGNED = 0xFFFFFFFE, 0xFFFFFFFF
_EMITS = 1 << 31


@dataclass(frozen=True)
class Order1Tables:
    """What the kernels (kernels/prefix_order1.py) look codes up in; every array read-only."""

    slots: (
        UInt32s  # [(clusters + 2) * 256]: first rank << 5 | length, by context (the last two: shared, idle), low 8 bits
    )
    symbols: UInt32s  # by rank
    tokens: Int32s  # by number, and one 0 more for symbols that emit nothing
    ids: UInt32s  # rising
    id_contexts: UInt32s  # by number: (context << 20 | number) + 1
    contexts: UInt32s  # the same by id, up to a bounded id; 0 where an id is not known, and at the end
    cells: Any  # uint64 hash table: context << 52 | number << 32 | code << 5 | length; 0 = free
    escapes: UInt32s  # code << 5 | length, by context; the last that of the escape of the shared code
    shared: UInt32s  # code << 5 | length, by number
    start: int  # the context at the start of a row
    shortest: int  # bits


def build_tables(
    ids: UInt32s, contexts: Int64s, shared_lengths: UInt8s, sizes: Int64s, members: Int64s, lengths: UInt8s
) -> Order1Tables:
    """Assign all codes, the escape's after those of its length; raises CorruptCodebookError.

    ids: uint32[n], rising; contexts: int64[n + 1], of each id and of the start, 0 … clusters; shared_lengths: of each
    id and the escape; sizes: the cells of each cluster; members: the number of the id of each cell, rising in a
    cluster; lengths: of each cluster's cells and its escape.
    """
    from tokzip_core.kernels.prefix_codes import assign_codes
    from tokzip_core.kernels.prefix_order1 import fill_cells

    clusters, n = sizes.size, ids.size
    if contexts.max() > clusters:
        raise CorruptCodebookError(f"a context of {contexts.max()}, of {clusters}")
    if members.size and members.max() >= n:
        raise CorruptCodebookError(f"a cell for id number {members.max()}, of {n}")
    for what, some, most in (("shared", shared_lengths, MAX_LENGTH), ("cluster's", lengths, MAX_CELL_LENGTH)):
        if some.size and not 1 <= some.min() <= some.max() <= most:
            raise CorruptCodebookError(f"a {what} code of {some.min()} to {some.max()} bits, not 1 to {most}")
    slots = np.zeros((clusters + 1) * 256, np.uint32)
    entries = np.empty(lengths.size, np.uint32)
    ranks = np.empty(lengths.size, np.int64)
    shared, shared_ranks = np.empty(n + 1, np.uint32), np.empty(n + 1, np.int64)
    first = 0
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes + 1)))
    for context in range(clusters + 1):
        own, table = slice(*bounds[context : context + 2]), slots[context * 256 : context * 256 + 256]
        if context < clusters:
            used = assign_codes(lengths[own], first, table, entries[own], ranks[own])
        else:
            used = assign_codes(shared_lengths, first, table, shared, shared_ranks)
        if used < 0:
            raise CorruptCodebookError(f"the code lengths of context {context} need more than 255 slots")
        first += used
    slots[slots == 0] = first << 5  # no code: UNASSIGNED
    slots = np.append(slots, np.full(256, first + 1 << 5, np.uint32))
    known = (contexts[:-1] << NUMBER_BITS | np.arange(n)).astype(np.uint32)
    symbols = np.full(first + 2, UNASSIGNED, np.uint32)
    symbols[-1] = clusters + 1 << NUMBER_BITS  # idle for ever
    symbols[shared_ranks] = np.append(known | np.uint32(_EMITS), np.uint32(ESCAPE))
    is_cell = np.ones(lengths.size, bool)
    is_cell[bounds[1:] - 1] = False
    symbols[ranks[is_cell]] = known[members] | np.uint32(_EMITS)
    symbols[ranks[~is_cell]] = clusters << NUMBER_BITS
    keys = (np.repeat(np.arange(clusters), sizes) << NUMBER_BITS | members).astype(np.uint32)
    cells = np.zeros(1 << (3 * members.size // 2 + 1).bit_length(), np.uint64)
    short_first = np.argsort(lengths[is_cell], kind="stable")  # what is looked up most is found at once
    fill_cells(keys[short_first], entries[is_cell][short_first], cells)
    dense = min(int(ids[-1]) + 1, (1 << 16) + 4 * n) if n else 0
    by_id = np.zeros(dense + 1, np.uint32)
    below = int(np.searchsorted(ids, dense))
    by_id[ids[:below]] = known[:below] + np.uint32(1)
    escapes = np.append(entries[~is_cell], shared[-1:])
    shortest = int(min(shared_lengths.min(), lengths.min(initial=MAX_LENGTH)))
    tokens = np.append(ids, np.uint32(0)).astype(np.int32)
    tables = Order1Tables(
        slots,
        symbols,
        tokens,
        ids,
        known + np.uint32(1),
        by_id,
        cells,
        escapes,
        shared[:-1],
        int(contexts[-1]),
        shortest,
    )
    for array in vars(tables).values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return tables


assert MAX_IDS == 1 << NUMBER_BITS
