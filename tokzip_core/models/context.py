"""The context model's tables: made from a codebook's body and back. Imports numpy, columns, errors, kernels."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tokzip_core.columns import Int64s, UInt8s, UInt32s
from tokzip_core.errors import CorruptCodebookError

UInt64s = npt.NDArray[np.uint64]

MAX_IDS = 1_000_000
MAX_UNITS = 1 << 22  # of kernels/context_coder.py: UNIT words each
MAX_ENTRIES = (1 << 22) - 1
MAX_CLASSES = 256
MAX_BODY = 1 << 26
_HEAD = struct.Struct("<IIIIH")  # ids, units of lists, entries, lists by two, classes of the last token
_KEY = np.uint64(20)
_FAULTS = {
    1: "it is cut short, or bytes follow it",
    2: "an id over 2^31 - 1",
    3: "a list whose weights are not allowed",
    4: "a symbol that is not in the list it is coded by",
    5: "more or fewer lists than declared",
}


@dataclass(frozen=True)
class ContextTables:
    """What the kernels look up; every array read-only.

    n symbols: 0 the row's end, 1 an unknown id, then the ids. Lists (see kernels/context_coder.py), in their order: of
    all, of 9 numbers of recent tokens, one a class of last symbols, some by a last symbol, some by the last two.
    """

    ids: UInt32s  # rising
    flags: UInt64s  # of 65,536 cases, in how many a match holds
    first: UInt32s  # [n]: the place of the list by a last symbol, or by its class, << 3 | rarity: 0 the most frequent
    recents: UInt32s  # [10]: the places of the lists of recent tokens, from 1 on
    lists: UInt32s  # one after the other
    pairs: UInt64s  # hash table: the place of a list by the last two, (p2, p1)
    symbols: UInt32s  # by entry, recent ones too
    weights: UInt32s  # by entry: the weight before it in its list << 5 | q

    @cached_property
    def encoding(self) -> tuple[Any, ...]:
        """What only an encoder needs: (dense, recent_entries, table, all_weights) of `encode_rows`."""
        dense = np.zeros(min(int(self.ids[-1]) + 1, (1 << 16) + 4 * self.ids.size) if self.ids.size else 0, np.uint32)
        below = int(np.searchsorted(self.ids, dense.size))
        dense[self.ids[:below]] = np.arange(2, 2 + below)
        places, begins = self._places()
        n = int(begins[1])
        table = hash_table(np.repeat(places[1:], np.diff(begins[1:])), self.symbols[n:], n)
        all_weights = np.full(self.first.size, 0xFFFFFFFF, np.uint32)
        all_weights[self.symbols[:n]] = self.weights[:n]
        return dense, begins[:11].copy(), table, all_weights

    def _places(self) -> tuple[UInt32s, Int64s]:
        """Of each list, its place and its first entry; and, of these, the end."""
        from tokzip_core.kernels.context_coder import list_places

        places, begins = np.empty(self.lists.size // 4, np.uint32), np.empty(self.lists.size // 4 + 1, np.int64)
        n = list_places(self.lists, places, begins)
        return places[:n], begins[: n + 1]


def hash_table(highs: Any, lows: Any, first: int = 0, values: Any = None) -> UInt64s:
    """The table that `find` of kernels/context_coder.py looks (high, low) up in; values count up from `first`.

    Raises CorruptCodebookError for keys that were chosen to collide.
    """
    from tokzip_core.kernels.context_coder import fill_table

    table: UInt64s = np.zeros(1 << max(4, (2 * len(highs)).bit_length()), np.uint64)
    if values is None:
        values = np.arange(first, first + len(highs))
    if not fill_table(np.asarray(highs, np.uint32), np.asarray(lows, np.uint32), np.asarray(values, np.uint32), table):
        raise CorruptCodebookError("its lists collide in a hash table")
    return table


def read_tables(body: bytes) -> ContextTables:
    """The tables of an untrusted body; raises CorruptCodebookError unless all of it is valid."""
    from tokzip_core.kernels.context_body import FLAGS, RECENT_LISTS, read_body
    from tokzip_core.kernels.context_coder import UNIT

    if len(body) < _HEAD.size:
        raise CorruptCodebookError(f"a body of {len(body)} bytes, less than {_HEAD.size}")
    n_ids, n_units, n_entries, n_pairs, by_class = _HEAD.unpack_from(body)
    least = 1 + RECENT_LISTS + by_class + n_pairs
    if (
        n_ids > MAX_IDS
        or not least <= n_units <= MAX_UNITS
        or by_class > MAX_CLASSES
        or not n_ids < n_entries <= min(MAX_ENTRIES, UNIT * n_units)
    ):
        raise CorruptCodebookError(f"{n_ids} ids, {n_units} units, {n_entries} entries: more than is allowed, or less")
    n = n_ids + 2
    ids, rarity = np.zeros(n_ids, np.uint32), np.zeros(n, np.uint8)
    flags, first, places = np.zeros(FLAGS, np.uint64), np.zeros(n, np.uint32), np.zeros(9 + by_class, np.uint32)
    lists = np.zeros(UNIT * n_units, np.uint32)
    symbols, weights = np.zeros(n_entries, np.uint32), np.zeros(n_entries, np.uint32)
    by_two = np.zeros((n_pairs, 2), np.uint64)
    status = read_body(
        np.frombuffer(body, np.uint8), _HEAD.size, ids, rarity, flags, first, by_class, places, lists, symbols, weights,
        by_two,
    )  # fmt: skip
    if status:
        raise CorruptCodebookError(_FAULTS[status])
    keys = by_two[:, 0]
    if np.unique(keys).size != keys.size:
        raise CorruptCodebookError("two lists for the same two tokens")
    pairs = hash_table(keys >> _KEY, keys & np.uint64((1 << 20) - 1), values=by_two[:, 1])
    chances = np.clip(flags * np.uint64(256) + np.uint64(128), 1024, 64512).astype(np.uint64)
    recents = np.append(np.uint32(0), places[:9])
    arrays = (ids, chances, first << np.uint32(3) | rarity, recents, lists, pairs, symbols, weights)
    for array in arrays:
        array.flags.writeable = False
    return ContextTables(*arrays)


@dataclass
class Lists:
    """A trained model before it is a body. Lists as in ContextTables; entries of one by falling q."""

    ids: UInt32s
    rarity: UInt8s
    flags: UInt8s
    first: UInt32s  # [n]: the number of a list
    by_class: int
    after: UInt32s  # by list: the number of the list that it goes on with, NONE of the first
    begins: Int64s  # by list, and the end: its first entry
    escapes: UInt8s  # by list: the code of its escape's weight
    recents: UInt8s  # by list: 1 + the code of the weight of recent tokens, or 0
    symbols: UInt32s  # by entry; the first list holds every symbol but 1
    q: UInt8s  # by entry
    pairs: UInt32s  # p1 of each list by two, in order of (p2, …)
    pair_counts: UInt32s  # [n]: how many lists by two have this p2


def write_lists(lists: Lists) -> bytes:
    """The body that `read_tables` reads."""
    from tokzip_core.kernels.context_body import write_body
    from tokzip_core.kernels.context_coder import HEAD, UNIT

    t = lists
    n = t.symbols.size
    sizes = np.diff(t.begins)
    of = np.repeat(np.arange(sizes.size), sizes)
    end = np.append(0, np.cumsum(1 << t.q.astype(np.int64)))  # weights over all lists
    begin = end[t.begins[:-1]]
    weights = ((end[:-1] - begin[of]) << 5 | t.q).astype(np.uint32)
    last = np.flatnonzero(np.append((of[1:] != of[:-1]) | (t.q[1:] != t.q[:-1]), True))  # entries of their classes
    n_classes = np.bincount(of[last], minlength=sizes.size)
    units = (HEAD + n_classes + sizes + UNIT - 1) // UNIT
    places = np.cumsum(units) - units
    words = np.zeros(UNIT * int(units.sum()), np.uint32)
    heads = UNIT * places
    held = end[t.begins[1:]] - begin
    bounds = held + np.where(t.recents > 0, escape_weights(t.recents.astype(np.int64) - 1), 0)
    words[heads] = np.minimum((1 << 32) // (bounds + escape_weights(t.escapes)), 2**32 - 1)
    words[heads + 1], words[heads + 3] = held << 5 | n_classes, bounds
    words[heads + 2] = np.where(t.after == 0xFFFFFFFF, 0xFFFFFFFF, places[np.minimum(t.after, sizes.size - 1)])
    first_class = np.cumsum(n_classes) - n_classes
    words[heads[of[last]] + HEAD + np.arange(last.size) - first_class[of[last]]] = (end[1:] - begin[of])[
        last
    ] << 5 | t.q[last]
    words[(heads + HEAD + n_classes - t.begins[:-1])[of] + np.arange(n)] = t.symbols
    table = hash_table(places[of], t.symbols)
    out = np.empty(24 * (n + 4 * sizes.size + 4 * t.rarity.size) + 4096, np.uint8)
    size = write_body(
        t.ids, t.rarity, t.flags, places.astype(np.uint32)[t.first], t.by_class, t.escapes, t.recents,
        places.astype(np.uint32), t.begins, t.symbols, weights, words, t.pairs, t.pair_counts, table, out,
    )  # fmt: skip
    head = _HEAD.pack(t.ids.size, int(units.sum()), n, t.pairs.size, t.by_class)
    return head + out[:size].tobytes()


def escape_weights(codes: Any) -> Int64s:
    """The weights of escape codes; see kernels/context_body.py."""
    codes = np.asarray(codes, np.int64)
    weights: Int64s = (4 + (codes & 3)) << (codes >> 2) >> 2
    return weights


def escape_code(weight: Any) -> UInt8s:
    """The least codes whose weights are at least `weight`."""
    ladder = escape_weights(np.arange(96))
    codes: UInt8s = np.searchsorted(ladder, weight).astype(np.uint8)
    return codes
