"""rANS, an arithmetic coder: quantise probabilities, build the tables. Imports numpy, columns, errors.

Range asymmetric numeral systems (Duda 2013, arXiv:1311.2540), with probabilities in 4,096ths. Rare symbols share a
class: the class has the probability, and tells its 2^extra members apart by bits as they are. Slot 0 belongs to no
class, so no symbol leaves the state 0 as it is: a row starts from 0 and needs no mark of its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokzip_core.columns import Int32s, Int64s, UInt32s
from tokzip_core.errors import CorruptCodebookError

BITS = 12
TOTAL = 1 << BITS
LARGEST = TOTAL - TOTAL // 16  # of a class, so that every token costs a twelfth of a bit or more
MAX_EXTRA = 12
MAX_IDS = 1 << 20
ESCAPE, UNASSIGNED = -1, -2  # in place of a token, as in coders/prefix.py
SHARE = 16  # 4,096ths that a class should have, so that rounding costs little


def choose_classes(weights: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """Classes for symbols of `weights` (int64, falling, positive): each class's frequency and extra, its first symbol.

    Symbols are shared out in order: one alone where it is probable enough, else as few as together are.
    """
    sums = np.concatenate(([0], np.cumsum(weights)))
    n, share = weights.size, sums[-1] * SHARE / TOTAL
    firsts, extras, at = [], [], 0
    while at < n:
        extra = 0
        while extra < MAX_EXTRA and at + (1 << extra) < n and sums[at + (1 << extra)] - sums[at] < share:
            extra += 1
        firsts.append(at)
        extras.append(extra)
        at += 1 << extra
    masses = np.diff(sums[np.append(firsts, n)])
    exact = masses * ((TOTAL - 1) / sums[-1])
    frequencies = np.clip(np.floor(exact), 1, LARGEST).astype(np.int64)
    for _ in range(frequencies.size + TOTAL):
        spare = TOTAL - 1 - int(frequencies.sum())
        if spare == 0:
            break
        if spare > 0:  # to the class that it helps most
            gains = np.where(frequencies < LARGEST, masses * np.log2(1 + 1 / frequencies), -1.0)
            if gains.max() < 0:
                break
            frequencies[gains.argmax()] += 1
        else:  # from the class that it hurts least
            with np.errstate(divide="ignore"):
                losses = np.where(frequencies > 1, -masses * np.log2(1 - 1 / frequencies), np.inf)
            frequencies[losses.argmin()] -= 1
    return frequencies, np.array(extras, np.int64), np.array(firsts, np.int64)


@dataclass(frozen=True)
class RansTables:
    """What the kernels (kernels/rans.py) look symbols up in; every array read-only."""

    slots: Any  # uint64[4096]: first rank << 32 | extra << 24 | offset in the class << 12 | frequency; 0 = no class
    tokens: Int32s  # by rank; negative for the escape and where there is no symbol
    ids: UInt32s  # rising
    id_symbols: Any  # uint64, of each of `ids`: extra bits << 32 | extra << 24 | first slot << 12 | frequency
    symbols: Any  # the same by id, up to a bounded id; 0 where there is none, and at the end
    escape: int  # the same of the escape


def build_tables(frequencies: Int64s, extras: Int64s, ids: UInt32s, classes: Int64s) -> RansTables:
    """Assign slots to classes in their order, and places in a class in order of ids, the escape's last.

    frequencies, extras: by class; ids: rising; classes: of each id and, last, of the escape. Raises
    CorruptCodebookError.
    """
    if not frequencies.size or not 1 <= frequencies.min() <= frequencies.max() <= LARGEST or extras.max() > MAX_EXTRA:
        raise CorruptCodebookError(f"a class's frequency is not 1 to {LARGEST}, or its extra bits over {MAX_EXTRA}")
    if frequencies.sum() >= TOTAL:
        raise CorruptCodebookError(f"the classes need {frequencies.sum()} slots of {TOTAL - 1}")
    if ids.size > MAX_IDS or classes.size != ids.size + 1 or classes.max() >= frequencies.size:
        raise CorruptCodebookError(f"{ids.size} ids in {frequencies.size} classes")
    members = np.bincount(classes, minlength=frequencies.size)
    if (members > 1 << extras).any() or (members <= (1 << extras) >> 1).any():
        raise CorruptCodebookError("a class has more or fewer ids than its extra bits tell apart")
    starts = np.cumsum(frequencies) - frequencies + 1
    ranks = np.cumsum(1 << extras) - (1 << extras)
    slots = np.zeros(TOTAL, np.uint64)
    of_slot = np.repeat(np.arange(frequencies.size), frequencies)
    offsets = np.arange(1, of_slot.size + 1) - starts[of_slot]
    slots[1 : of_slot.size + 1] = (
        ranks[of_slot] << 32 | extras[of_slot] << 24 | offsets << 12 | frequencies[of_slot]
    ).astype(np.uint64)
    order = np.argsort(classes, kind="stable")
    place = np.empty(order.size, np.int64)
    place[order] = np.arange(order.size) - (np.cumsum(members) - members)[classes[order]]
    tokens = np.full(int((1 << extras).sum()), UNASSIGNED, np.int32)
    tokens[ranks[classes] + place] = np.append(ids.astype(np.int32), np.int32(ESCAPE))
    every = place << 32 | extras[classes] << 24 | starts[classes] << 12 | frequencies[classes]
    every = every.astype(np.uint64)
    dense = min(int(ids[-1]) + 1, (1 << 16) + 4 * ids.size) if ids.size else 0
    symbols = np.zeros(dense + 1, np.uint64)
    below = int(np.searchsorted(ids, dense))
    symbols[ids[:below]] = every[:below]
    for array in (slots, tokens, ids, every, symbols):
        array.flags.writeable = False
    return RansTables(slots, tokens, ids, every[:-1], symbols, int(every[-1]))
