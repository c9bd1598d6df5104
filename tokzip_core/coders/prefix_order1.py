"""A prefix-class code for each cluster of contexts, and one shared by all: build the tables. Imports numpy, coders.

A context is the cluster of the token before. An id without a code in its context is the context's escape, which
emits nothing and leads to the shared code, where every known id has a code. To the decoder a context is whatever
selects the table for the next code, so that what happens in a row are contexts too: after the clusters come those of
`Beside`, and from `first_event` on, the power of two above them, those of `Event`, which read nothing and stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from tokzip_core.coders.prefix import MAX_LENGTH
from tokzip_core.columns import Int32s, Int64s, UInt8s, UInt32s
from tokzip_core.errors import CorruptCodebookError

MAX_CLUSTERS = 1021
MAX_CELLS = 1 << 22
MAX_CELL_LENGTH = 16  # bits, of codes in a cluster
NUMBER_BITS = 20
MAX_IDS = (1 << NUMBER_BITS) - 1
MAX_PAIRS = 1 << 26  # of a cluster and an id: the encoder's table has two bits for each
EMITS = 1 << 31  # a symbol is EMITS if it is a token | the next context << 20 | the id (or number, if ids are larger)


class Beside(IntEnum):
    """The contexts that follow the clusters."""

    NONE = 0  # after a token that is in no cluster: the shared code
    ESCAPED = 1  # after a cluster's escape: the shared code
    RESTING = 2  # of a lane without a row: stays


class Event(IntEnum):
    END = 0  # 8 zeros: the row ends here, or is bad
    OPEN_END = 1  # the same after a cluster's escape
    ESCAPE = 2  # 31 bits of an unknown id follow
    NO_CODE = 3


@dataclass(frozen=True)
class Order1Tables:
    """What the kernels (kernels/prefix_order1.py) look codes up in; every array read-only."""

    ids: UInt32s  # rising; an id's number is its place
    id_ranks: UInt32s  # by number: (the context it leads to << 20 | its rank by the length of its shared code) + 1
    clusters: int
    start: int  # the context at the start of a row
    shortest: int  # bits

    # to decode
    slots: UInt32s  # [(first_event + 4) * 256]: first place in `symbols` << 5 | length, by context and low 8 bits
    symbols: UInt32s
    tokens: Int32s  # by number; empty if symbols hold the ids

    # to encode
    ranks: UInt32s  # context << 20 | rank by id, up to a bounded id; rank n where an id is not known
    cells: Any  # uint64[(clusters + 1) * (n // 32 + 1)]: for 32 ranks, place in `entries` << 32 | a bit for each cell
    entries: UInt32s  # by cluster and rank: code << 6 | length of each cell, and a 0
    escapes: UInt32s  # code << 5 | length, by cluster; 0 for none
    shared: UInt32s  # code << 5 | length, by rank, the escape's last


def build_tables(
    ids: UInt32s, contexts: Int64s, shared_lengths: UInt8s, sizes: Int64s, members: Int64s, lengths: UInt8s
) -> Order1Tables:
    """Assign all codes, the escape's after those of its length; raises CorruptCodebookError.

    ids: uint32[n], rising; contexts: int64[n + 1], of each id and of the start, 0 … clusters; shared_lengths: of each
    id and the escape; sizes: the cells of each cluster; members: the number of the id of each cell, rising in a
    cluster; lengths: of each cluster's cells and its escape.
    """
    from tokzip_core.kernels.prefix_codes import assign_codes

    clusters, n = sizes.size, ids.size
    if contexts.max() > clusters:
        raise CorruptCodebookError(f"a context of {contexts.max()}, of {clusters}")
    if members.size and members.max() >= n:
        raise CorruptCodebookError(f"a cell for id number {members.max()}, of {n}")
    for what, some, most in (("shared", shared_lengths, MAX_LENGTH), ("cluster's", lengths, MAX_CELL_LENGTH)):
        if some.size and not 1 <= some.min() <= some.max() <= most:
            raise CorruptCodebookError(f"a {what} code of {some.min()} to {some.max()} bits, not 1 to {most}")
    none, escaped, resting = (clusters + np.array(Beside)).tolist()
    events = (1 << resting.bit_length()) + np.array(Event)
    slots = np.zeros((events[-1] + 1, 256), np.uint32)
    codes, places = np.empty(lengths.size, np.uint32), np.empty(lengths.size, np.int64)
    shared, shared_places = np.empty(n + 1, np.uint32), np.empty(n + 1, np.int64)
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes + 1)))
    first = 0
    for context in range(clusters + 1):
        own, table = slice(*bounds[context : context + 2]), slots[context]
        if context < clusters:
            used = assign_codes(lengths[own], first, table, codes[own], places[own])
        else:
            used = assign_codes(shared_lengths, first, table, shared, shared_places)
        if used < 0:
            raise CorruptCodebookError(f"the code lengths of context {context} need more than 255 slots")
        first += used
    is_cell = np.ones(lengths.size, bool)
    is_cell[bounds[1:] - 1] = False

    idle = np.append(events, resting)
    idle_slots = (first + np.arange(idle.size) << 5).astype(np.uint32)
    slots[slots == 0] = idle_slots[Event.NO_CODE]
    slots[: none + 1, 0] = idle_slots[Event.END]
    slots[escaped] = slots[none]
    slots[escaped, 0] = idle_slots[Event.OPEN_END]
    slots[idle] = idle_slots[:, None]
    as_symbols = bool(n == 0 or ids[-1] <= MAX_IDS)
    emitted = (contexts[:-1] << NUMBER_BITS | EMITS | (ids if as_symbols else np.arange(n))).astype(np.uint32)
    symbols = np.full(first, events[Event.NO_CODE] << NUMBER_BITS, np.uint32)
    symbols[shared_places] = np.append(emitted, np.uint32(events[Event.ESCAPE] << NUMBER_BITS))
    symbols[places] = escaped << NUMBER_BITS
    symbols[places[is_cell]] = emitted[members]

    by_rank = np.argsort(shared_lengths[:-1], kind="stable")
    rank = np.empty(n, np.int64)
    rank[by_rank] = np.arange(n)
    keys = np.repeat(np.arange(clusters), sizes) * (n // 32 + 1) * 32 + rank[members]
    order = np.argsort(keys)
    bits = np.bincount(keys >> 5, 2.0 ** (keys & 31), (clusters + 1) * (n // 32 + 1)).astype(np.uint64)
    held = np.bincount(keys >> 5, minlength=bits.size)
    entries = np.append(codes[is_cell][order], np.uint32(0))
    known = (contexts[:-1] << NUMBER_BITS | rank).astype(np.uint32)
    dense = min(int(ids[-1]) + 1, (1 << 16) + 4 * n) if n else 0
    below = int(np.searchsorted(ids, dense))
    ranks = np.full(dense, none << NUMBER_BITS | n, np.uint32)
    ranks[ids[:below]] = known[:below]
    tables = Order1Tables(
        ids=ids,
        id_ranks=known + np.uint32(1),
        clusters=clusters,
        start=int(contexts[-1]),
        shortest=int(min(shared_lengths.min(), lengths.min(initial=MAX_LENGTH))),
        slots=slots.reshape(-1),
        symbols=np.append(symbols, (idle << NUMBER_BITS).astype(np.uint32)),
        tokens=np.empty(0, np.int32) if as_symbols else ids.astype(np.int32),
        ranks=ranks,
        cells=bits | (np.cumsum(held) - held).astype(np.uint64) << np.uint64(32),
        entries=entries >> np.uint32(5) << np.uint32(6) | entries & np.uint32(31),
        escapes=np.append(codes[~is_cell], np.uint32(0)),
        shared=np.append(shared[by_rank], shared[-1:]),
    )
    for array in vars(tables).values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return tables
