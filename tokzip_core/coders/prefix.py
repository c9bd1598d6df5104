"""Prefix-class codes: choose code lengths, assign codes, build the tables. Imports numpy, errors, kernels.

A prefix-class code is a canonical, length-limited Huffman code (Huffman 1952; canonical form: Schwartz and Kallick
1964) restricted so that the first 8 bits of a code tell its length. These 8 bits select one of 256 slots. A length
under 8 takes 2^(8 - length) slots a symbol; a length of 8 or more takes whole slots, and each holds
2^(length - 8) symbols, told apart by the bits that follow as they are. One slot, all zeros, belongs to no code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokzip_core.columns import Int32s, Int64s, UInt8s, UInt32s
from tokzip_core.errors import CorruptCodebookError

SLOTS = 255
MAX_LENGTH = 27  # code << 5 | length fits 32 bits, two codes one load
TRIPLE_LENGTH = 19  # three codes fit one load
TRIPLE_LOSS = 0.005  # the share of size that three codes a load may cost
MAX_IDS = 1 << 20
NO_ENTRY = 64  # a length that makes those of three codes more than a load
ESCAPE, UNASSIGNED = -1, -2  # in place of a token: 31 bits of an id without a code follow; no code

_ALL_LENGTHS = np.arange(MAX_LENGTH + 1)
_SLOTS_OF_ONE = 1 << np.maximum(0, 8 - _ALL_LENGTHS)
_PLACES = 1 << np.maximum(0, _ALL_LENGTHS - 8)  # symbols a slot


def slots_used(histogram: Int64s) -> int:
    """The slots taken by `histogram[length]` symbols of each length 0 … MAX_LENGTH."""
    return int((-(-histogram // _PLACES) * _SLOTS_OF_ONE).sum())


def choose_lengths(weights: Int64s) -> UInt8s:
    """Code lengths (uint8, rising) for symbols of `weights` (int64, falling, positive) that nearly minimise the bits.

    Lagrangian relaxation (Everett 1963): a price a slot, found by bisection, makes the choice a shortest path; what
    slots are then left are spent greedily. On English Wikipedia within 0.2 % of the relaxation's own lower bound.
    """
    unlimited, bits = lengths_within(weights, MAX_LENGTH)
    if unlimited[-1] > TRIPLE_LENGTH and weights.size <= SLOTS * _PLACES[TRIPLE_LENGTH]:
        limited, limited_bits = lengths_within(weights, TRIPLE_LENGTH)
        if limited_bits <= bits * (1 + TRIPLE_LOSS):
            return limited
    return unlimited


def lengths_within(weights: Int64s, max_length: int) -> tuple[UInt8s, int]:
    """`choose_lengths` of at most `max_length` bits, and the bits that all `weights` then take."""
    from tokzip_core.kernels.prefix_lengths import priced_lengths

    spare = max(0, 40 - int(weights.sum()).bit_length())
    scaled = weights << spare  # so that whole prices are fine enough
    lengths: UInt8s = np.empty(weights.size, np.uint8)
    cheap, dear = 0, 1 << 46
    while cheap < dear:
        price = (cheap + dear) // 2
        used, _ = priced_lengths(scaled, max_length, price, lengths)
        if used <= SLOTS:
            dear = price
        else:
            cheap = price + 1
    priced_lengths(scaled, max_length, dear, lengths)
    histogram = np.bincount(lengths, minlength=MAX_LENGTH + 1)
    sums = np.concatenate(([0], np.cumsum(weights)))
    while _shorten(histogram, sums):
        pass
    lengths = np.repeat(_ALL_LENGTHS, histogram).astype(np.uint8)
    return lengths, int((lengths * weights).sum())


def _shorten(histogram: Int64s, sums: Int64s) -> bool:
    """Make one slot's worth of symbols one bit shorter, where it gains most and the slots suffice."""
    best, choice = 0, None
    begins = np.concatenate(([0], np.cumsum(histogram)))
    for length in range(2, MAX_LENGTH + 1):
        moved = min(int(histogram[length]), int(_PLACES[length - 1]))
        changed = histogram.copy()
        changed[length] -= moved
        changed[length - 1] += moved
        gain = int(sums[begins[length] + moved] - sums[begins[length]])
        if gain > best and slots_used(changed) <= SLOTS:
            best, choice = gain, changed
    if choice is not None:
        histogram[:] = choice
    return choice is not None


@dataclass(frozen=True)
class PrefixTables:
    """What the kernels (kernels/prefix.py) look codes up in; every array read-only."""

    slot_lengths: UInt8s  # [256]: the length of the codes of a slot; 0 where there is none
    slot_ranks: UInt32s  # [256]: the rank of the first of them
    tokens: Int32s  # by rank; negative for the escape and where there is no code, as at the end
    ids: UInt32s  # rising
    id_entries: UInt32s  # code << 5 | length of each of `ids`
    entries: UInt32s  # code << 8 | length by id, up to a bounded power of two; NO_ENTRY where none fits, and at the end
    escape: int  # the entry of the escape code
    shortest: int  # bits
    mean: float  # bits, were every token as likely as its code is short
    triple: bool


def build_tables(ids: UInt32s, lengths: UInt8s) -> PrefixTables:
    """Assign codes by (length, id), the escape after the ids of its length; raises CorruptCodebookError.

    ids: uint32[n], rising, under 2^31; lengths: uint8[n + 1], 1 … MAX_LENGTH, the escape's last.
    """
    from tokzip_core.kernels.prefix_codes import assign_codes

    if ids.size > MAX_IDS or ids.size + 1 != lengths.size:
        raise CorruptCodebookError(f"{ids.size} ids and {lengths.size} code lengths; at most {MAX_IDS} are allowed")
    if ids.size and (ids[-1] >= 1 << 31 or not (ids[1:] > ids[:-1]).all()):
        raise CorruptCodebookError("ids out of order or over 2^31 - 1")
    if not 1 <= lengths.min() <= lengths.max() <= MAX_LENGTH:
        raise CorruptCodebookError(f"code lengths of {lengths.min()} to {lengths.max()}, not 1 to {MAX_LENGTH}")
    slots = np.zeros(256, np.uint32)
    all_entries = np.empty(lengths.size, np.uint32)
    ranks = np.empty(lengths.size, np.int64)
    n_ranks = assign_codes(lengths, 0, slots, all_entries, ranks)
    if n_ranks < 0:
        raise CorruptCodebookError(f"the code lengths need more than {SLOTS} slots")
    slots[slots == 0] = n_ranks << 5
    slot_lengths, slot_ranks = (slots & 31).astype(np.uint8), (slots >> 5).astype(np.uint32)
    tokens = np.full(n_ranks + 1, UNASSIGNED, np.int32)
    tokens[ranks] = np.append(ids.astype(np.int32), np.int32(ESCAPE))
    id_entries = all_entries[:-1]
    dense = 1 << (min(int(ids[-1]), (1 << 16) + 4 * ids.size) if ids.size else 0).bit_length()
    entries = np.full(dense + 1, NO_ENTRY, np.uint32)
    short = (ids < dense) & (lengths[:-1] <= 24)
    entries[ids[short]] = id_entries[short] >> 5 << 8 | id_entries[short] & 31
    for array in (slot_lengths, slot_ranks, tokens, ids, id_entries, entries):
        array.flags.writeable = False
    shortest, mean = int(lengths.min()), float((lengths * 0.5**lengths).sum() / (0.5**lengths).sum())
    triple = bool(lengths.max() <= TRIPLE_LENGTH)
    escape = int(all_entries[-1])
    return PrefixTables(slot_lengths, slot_ranks, tokens, ids, id_entries, entries, escape, shortest, mean, triple)
