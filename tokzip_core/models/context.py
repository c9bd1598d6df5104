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

MAX_IDS = 1 << 20
MAX_LISTS = 1 << 21
MAX_ENTRIES = 1 << 22
MAX_CLASSES = 256
MAX_BODY = 1 << 26
_HEAD = struct.Struct("<IIIIIH")  # ids, lists, classes of entries, entries, lists by two, classes of the last token
_FAULTS = {
    1: "it is cut short, or bytes follow it",
    2: "an id over 2^31 - 1",
    3: "a list whose weights are not allowed",
    4: "a symbol that is not in the list it is coded by",
    5: "more or fewer lists than declared",
}


@dataclass(frozen=True)
class ContextTables:
    """What the kernels (kernels/context.py) look up; every array read-only.

    n symbols: 0 the row's end, 1 an unknown id, then the ids. Lists: 0 all, 1 … 9 how far back among the recent tokens,
    then one a class of last symbols, some a last symbol, some the last two.
    """

    ids: UInt32s  # rising
    frequency: UInt8s  # [n]: 0 the most frequent … 7
    flags: UInt64s  # of 65,536 cases, in how many a match holds
    first: UInt32s  # [n]: the list by a last symbol, or by its class
    heads: UInt32s  # [lists, 4] and
    classes: UInt32s  # [., 2]: see kernels/context_coder.py
    symbols: UInt32s  # by entry
    weights: UInt32s  # by entry: the weight before it << 5 | q
    pairs: UInt64s  # hash table: the list by the last two, (p2, p1)

    @cached_property
    def encoding(self) -> tuple[Any, ...]:
        """What only an encoder needs: arguments of `encode_rows`, from `dense` to `escapes`."""
        dense = np.zeros(min(int(self.ids[-1]) + 1, (1 << 16) + 4 * self.ids.size) if self.ids.size else 0, np.int32)
        below = int(np.searchsorted(self.ids, dense.size))
        dense[self.ids[:below]] = np.arange(2, 2 + below)
        begins = first_entries(self.heads, self.classes, self.symbols.size)
        of = np.repeat(np.arange(self.heads.shape[0]), np.diff(begins))
        n = int(begins[1])
        table = hash_table(of[n:], self.symbols[n:], n)
        all_entries = np.zeros(self.frequency.size, np.uint32)
        all_entries[self.symbols[:n]] = np.arange(n)
        total = 2.0**32 / np.maximum(1, self.heads[:, 0])
        totals = np.round(16 * np.log2(total)).astype(np.int64)
        escape = np.maximum(total - self.heads[:, 1], total / 64)
        escapes = np.round(16 * np.log2(total / escape)).astype(np.int64)
        return dense, begins[:11].copy(), table, all_entries, totals, escapes


def first_entries(heads: UInt32s, classes: UInt32s, n: int) -> Int64s:
    """The first entry of each list and, last, how many entries there are."""
    begins = np.append(classes[:, 1] >> 5, n).astype(np.int64)
    return np.append(begins[heads[:, 2]], n)


def hash_table(highs: Any, lows: Any, first: int = 0) -> UInt64s:
    """The table that `find` of kernels/context_coder.py looks (high, low) up in; values count up from `first`."""
    from tokzip_core.kernels.context_coder import fill_table

    table: UInt64s = np.zeros(1 << max(4, (2 * len(highs)).bit_length()), np.uint64)
    values = np.arange(first, first + len(highs), dtype=np.uint32)
    fill_table(np.asarray(highs, np.uint32), np.asarray(lows, np.uint32), values, table)
    return table


def read_tables(body: bytes) -> ContextTables:
    """The tables of an untrusted body; raises CorruptCodebookError unless all of it is valid."""
    from tokzip_core.kernels.context_body import FIRST_CLASS, FLAGS, read_body

    if len(body) < _HEAD.size:
        raise CorruptCodebookError(f"a body of {len(body)} bytes, less than {_HEAD.size}")
    n_ids, n_lists, n_classes, n_entries, n_pairs, by_class = _HEAD.unpack_from(body)
    least = FIRST_CLASS + by_class + n_pairs
    if (
        n_ids > MAX_IDS
        or not least <= n_lists <= MAX_LISTS
        or not n_classes <= n_entries <= MAX_ENTRIES
        or by_class > MAX_CLASSES
        or n_entries <= n_ids
    ):
        raise CorruptCodebookError(f"{n_ids} ids, {n_lists} lists, {n_entries} entries: more than is allowed, or less")
    n = n_ids + 2
    ids, frequency = np.zeros(n_ids, np.uint32), np.zeros(n, np.uint8)
    flags, first = np.zeros(FLAGS, np.uint64), np.zeros(n, np.uint32)
    heads, classes = np.zeros((n_lists, 4), np.uint32), np.zeros((n_classes, 2), np.uint32)
    symbols, weights = np.zeros(n_entries, np.uint32), np.zeros(n_entries, np.uint32)
    keys = np.zeros(n_pairs, np.uint64)
    status = read_body(
        np.frombuffer(body, np.uint8), _HEAD.size, ids, frequency, flags, first, by_class, heads, classes, symbols,
        weights, keys,
    )  # fmt: skip
    if status:
        raise CorruptCodebookError(_FAULTS[status])
    if np.unique(keys).size != keys.size:
        raise CorruptCodebookError("two lists for the same two tokens")
    pairs = hash_table(keys >> np.uint64(21), keys & np.uint64((1 << 21) - 1), n_lists - n_pairs)
    chances = np.clip(flags * np.uint64(256) + np.uint64(128), 1024, 64512).astype(np.uint64)
    arrays = (ids, frequency, chances, first, heads, classes, symbols, weights, pairs)
    for array in arrays:
        array.flags.writeable = False
    return ContextTables(*arrays)


@dataclass
class Lists:
    """A trained model before it is a body. Entries of a list come by falling q; list 0 holds every symbol but 1."""

    ids: UInt32s
    frequency: UInt8s
    flags: UInt8s
    first: UInt32s  # [n]
    by_class: int
    after: UInt32s  # by list: the list that it goes on with
    begins: Int64s  # by list, and the end: its first entry
    escapes: UInt8s  # by list: the code of its escape's weight
    symbols: UInt32s  # by entry
    q: UInt8s  # by entry
    pairs: UInt32s  # p1 of each list by two, in order of (p2, …)
    pair_counts: UInt32s  # [n]: how many lists by two have this p2


def write_lists(lists: Lists) -> bytes:
    """The body that `read_tables` reads."""
    from tokzip_core.kernels.context_body import write_body

    t = lists
    n = t.symbols.size
    sizes = np.diff(t.begins)
    before = np.cumsum(1 << t.q.astype(np.int64)) - (1 << t.q.astype(np.int64))
    of = np.repeat(np.arange(sizes.size), sizes)
    padded = np.append(before, (1 << t.q.astype(np.int64)).sum())
    weights = ((before - padded[t.begins[:-1]][of]) << 5 | t.q).astype(np.uint32)
    held = padded[t.begins[1:]] - padded[t.begins[:-1]]
    totals = held + escape_weights(t.escapes)
    heads = np.zeros((sizes.size, 4), np.uint32)
    heads[:, 0] = np.minimum((1 << 32) // totals, 2**32 - 1)
    heads[:, 1], heads[:, 3] = held, t.after
    table = hash_table(of, t.symbols)
    new_class = np.append(True, (of[1:] != of[:-1]) | (t.q[1:] != t.q[:-1]))
    out = np.empty(24 * (n + 4 * sizes.size + 4 * t.frequency.size) + 4096, np.uint8)
    size = write_body(
        t.ids, t.frequency, t.flags, t.first, t.by_class, t.escapes, t.begins, t.symbols, weights, heads, t.pairs,
        t.pair_counts, table, out,
    )  # fmt: skip
    head = _HEAD.pack(t.ids.size, sizes.size, int(new_class.sum()), n, t.pairs.size, t.by_class)
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
