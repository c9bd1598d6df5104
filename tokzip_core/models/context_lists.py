"""Lists of the `context` model: which entries are worth their place, and what they weigh. Imports models/context.

An entry is kept where it saves more bits over the sample than it costs in the codebook; a list by the last one or two
symbols, where it also saves enough for the time that asking it takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokzip_core.models.context import escape_code, escape_weights

DISCOUNT = 0.6  # taken from every count and given to the escape
ENTRY, LIST = 1.5, 10.0  # bits in the codebook besides the symbol's own; of a list besides its entries
MOST = 800_000  # entries of one kind of list, so that all are under MAX_ENTRIES, and their units under MAX_UNITS
WORTH = 0.8  # how many bits of the sample one of the codebook must save
LOOK_UP = 0.5  # how many bits a list must save each time that it is asked, as asking takes time
SYMBOL_BITS = 21
_SYMBOL = np.uint64(SYMBOL_BITS)
_LOW = np.uint64((1 << SYMBOL_BITS) - 1)
_RECENT = 14  # log2 of about the weight of a list


@dataclass
class Chosen:
    """The lists of one kind; entries by list, falling q, symbol. Costs are in bits, float32."""

    contexts: Any  # those with a list, rising
    at: Any  # by entry: its list
    symbols: Any  # by entry
    q: Any  # by entry
    codes: Any  # of the escapes, by list
    recents: Any  # 1 + the codes of recent tokens, or 0, by list
    costs: Any  # by entry
    escape_costs: Any  # by list
    recent_costs: Any  # by list


def choose(keys: Any, counts: Any, costs_of: Any, scale: int, recent_counts: Any = None) -> Chosen:
    """The entries worth keeping among `keys` (context << 21 | symbol, rising) seen `counts` times.

    costs_of: keys to the bits each symbol takes under the lists below, which is what it also takes in the codebook.
    recent_counts: if given, each of its contexts has a list, whose recent tokens were taken so often.
    """
    contexts = keys >> _SYMBOL
    if recent_counts is None:
        names, of = np.unique(contexts, return_inverse=True)
        recent = np.zeros(names.size)
    else:
        names, of, recent = np.arange(recent_counts.size), contexts.astype(np.int64), recent_counts
    totals = np.bincount(of, counts, names.size) + 0.5
    often = counts >= 2
    keys, of, counts = keys[often], of[often], counts[often].astype(np.float64)
    lower = costs_of(keys).astype(np.float64)
    price = WORTH * (lower + ENTRY)
    less = counts - DISCOUNT
    keep = np.ones(keys.size, np.bool_)
    for _ in range(4):
        escape = totals - np.bincount(of[keep], less[keep], totals.size)
        other = np.where(keep, escape[of], np.maximum(escape[of] - less, 0.5))  # the escape's weight if it is kept
        gain = counts * (np.log2(less / (other + less)) + lower)
        gain += np.maximum(other - 0.5 - DISCOUNT, 0) * np.log2(other / (other + less))
        keep = gain > price
    if np.count_nonzero(keep) > MOST:
        keep[np.argsort(np.where(keep, price - gain, np.inf), kind="stable")[MOST:]] = False
    escape = totals - np.bincount(of[keep], less[keep], totals.size)
    used = np.arange(names.size)
    if recent_counts is None:
        rest = totals - 0.5 - np.bincount(of[keep], counts[keep], totals.size)
        saved = counts * (np.log2(less / totals[of]) + lower) - price
        gain = np.bincount(of[keep], saved[keep], totals.size) + rest * np.log2(escape / totals)
        gain -= WORTH * LIST + LOOK_UP * totals
        keep &= (gain > 0)[of]
        used = np.unique(of[keep])
    at = np.searchsorted(used, of[keep])
    totals, escape, recent = (totals + recent)[used], escape[used], recent[used]
    shares = less[keep] / totals[at]
    return quantised(names[used], at, keys[keep] & _LOW, shares, escape / totals, scale, recent / totals)


def quantised(
    contexts: Any, at: Any, symbols: Any, shares: Any, escapes: Any, scale: int, recents: Any = None
) -> Chosen:
    """Lists whose weights come to about 2^scale. shares: of entries; escapes, recents: of lists, float64."""
    q = np.clip(np.round(np.log2(shares) + scale), 0, scale).astype(np.int64)
    order = np.lexsort((symbols, -q, at))
    at, q = at[order], q[order]
    held = np.bincount(at, np.exp2(q), escapes.size)
    # Codes are of the next step up, so the step's middle is asked for; an escape has at least 1/64 of its list.
    recent_codes = np.zeros(escapes.size, np.uint8)
    if recents is not None:
        recent_codes = np.where(recents > 0, 1 + escape_code(np.maximum(1, recents * 2.0**scale * 0.92)), 0)
    recent = np.where(recent_codes > 0, escape_weights(recent_codes.astype(np.int64) - 1), 0)
    held = held + recent
    codes = np.maximum(escape_code(np.maximum(1, escapes * 2.0**scale * 0.92)), escape_code(held / 63 + 1))
    weights = escape_weights(codes)
    log_totals = np.log2(held + weights)
    return Chosen(
        contexts,
        at,
        symbols[order],
        q,
        codes,
        recent_codes.astype(np.uint8),
        (log_totals[at] - q).astype(np.float32),
        (log_totals - np.log2(weights)).astype(np.float32),
        np.where(recent > 0, log_totals - np.log2(np.maximum(1, recent)), 99).astype(np.float32),
    )


def choose_recent_lists(counts: Any) -> tuple[Chosen, Any]:
    """Lists of distances from counts[list, distance], and costs, float32[10, 256]."""
    sizes = np.minimum(256, (1 << np.arange(1, 10)) - 1)
    shares = []
    for i, size in enumerate(sizes):
        edges = np.unique(np.minimum(size, np.round(np.exp2(np.arange(17) / 2)).astype(np.int64) - 1))  # half octaves
        widths = np.diff(np.append(edges, size))
        edges, widths = edges[widths > 0], widths[widths > 0]
        means = (np.add.reduceat(counts[i + 1, :size], edges) + 0.2 * widths) / widths
        falling = np.minimum.accumulate(np.repeat(means, widths))
        shares.append(falling / falling.sum())
    at = np.repeat(np.arange(9), sizes)
    distances = np.concatenate([np.arange(size) for size in sizes])
    chosen = quantised(np.arange(9), at, distances, np.concatenate(shares), np.zeros(9), _RECENT)
    costs = np.full((10, 256), 99, np.float32)
    costs[chosen.at + 1, chosen.symbols] = chosen.costs
    return chosen, costs
