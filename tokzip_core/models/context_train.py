"""Training of the `context` model: which n-grams are worth their place, and what weighs what. Imports models, kernels.

Lists are chosen from the least context to the most, each against what the lists under it would pay, and then counted
again on the tokens that reach them: after matches, after recent tokens, after an escape from above. An entry is kept
where it saves more bits over the sample than it costs in the codebook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokzip_core.models.context import MAX_IDS, Lists, escape_code, escape_weights, hash_table, write_lists
from tokzip_core.models.context_rows import SampledRows

CLASSES = 256
CLUSTERED = 1 << 16  # only so many symbols are told apart while clustering
ROUNDS = 3
DISCOUNT = 0.6  # taken from every count and given to the escape
ENTRY, LIST = 1.5, 10.0  # bits in the codebook besides the symbol's own; of a list besides its entries
MOST = 1_000_000  # entries of one kind of list, so that all are under MAX_ENTRIES, and the lists under MAX_LISTS
WORTH = 0.8  # how many bits of the sample one of the codebook must save
_SYMBOL = np.uint64(21)
_LOW = np.uint64((1 << 21) - 1)
_RARITY = np.array([8, 32, 128, 512, 2048, 8192, 32768])  # ranks where a frequency class ends
_ALL, _CLASS, _LAST, _TWO, _RECENT = 22, 16, 14, 14, 14  # log2 of about the weight of a list of each kind


@dataclass
class Chosen:
    """The lists of one kind; entries by list, falling q, symbol. Costs are in bits, float32."""

    contexts: Any  # those with a list, rising
    at: Any  # by entry: its list
    symbols: Any  # by entry
    q: Any  # by entry
    codes: Any  # of the escapes, by list
    costs: Any  # by entry
    escape_costs: Any  # by list


def train_lists(model: SampledRows) -> tuple[bytes, float]:
    """The codebook body for a sample, and the bits a token that it needs, row ends not counted."""
    order = np.lexsort((model.counts.ids, -model.counts.counts))[:MAX_IDS]
    ids = np.sort(model.counts.ids[order])
    rank = np.empty(ids.size, np.int64)
    rank[np.searchsorted(ids, model.counts.ids[order])] = np.arange(ids.size)
    frequency = np.full(ids.size + 2, 7, np.uint8)
    frequency[0] = 0
    frequency[2:] = np.searchsorted(_RARITY, rank, "right")
    tokens, lengths = model.rows()
    at = np.searchsorted(ids, tokens)
    known = at < ids.size
    known[known] = ids[at[known]] == tokens[known]
    stream = np.zeros(tokens.size + lengths.size, np.int32)
    stream[np.arange(tokens.size) + np.repeat(np.arange(lengths.size), lengths)] = np.where(known, at + 2, 1)
    return _Training(ids, frequency, stream).run()


class _Training:
    def __init__(self, ids: Any, frequency: Any, stream: Any) -> None:
        from tokzip_core.kernels.context_body import FLAGS
        from tokzip_core.kernels.context_train import count_matches

        self.ids, self.frequency, self.stream = ids, frequency, stream
        self.n = frequency.size
        held = np.empty(stream.size, np.bool_)
        self.flag_counts = np.zeros((FLAGS, 2), np.int64)
        count_matches(stream, frequency, held, self.flag_counts)
        self.free = ~held & (stream != 1)  # what is neither foretold nor unknown: what lists are for
        self.p1 = np.concatenate((np.zeros(1, np.int32), stream[:-1]))[: stream.size]
        self.p2 = np.concatenate((np.zeros(1, np.int32), self.p1[:-1]))[: stream.size]
        self.p2[self.p1 == 0] = 0
        self.recent_counts = np.zeros((10, 257), np.int64)
        self.taken = np.zeros(stream.size, np.bool_)

    def run(self) -> tuple[bytes, float]:
        free = np.flatnonzero(self.free)
        pair_keys = self.p2[free].astype(np.uint64) << _SYMBOL | self.p1[free].astype(np.uint64)
        self.pair_keys, pair_of = np.unique(pair_keys, return_inverse=True)
        trigrams, trigram_counts = np.unique(
            pair_of.astype(np.uint64) << _SYMBOL | self.stream[free].astype(np.uint64), return_counts=True
        )
        bigrams, counts = self._bigrams(self.free)
        self._choose_all(np.bincount(self.stream[free], minlength=self.n))
        self.class_of = self._classes(bigrams, counts)
        self.by_class = self._choose_classes(bigrams, counts)
        self.by_last = self._choose_last(bigrams, counts)
        for _ in range(ROUNDS):
            self.by_two = self._choose_two(trigrams, trigram_counts)
            reached = self._after_pairs()
            bigrams, counts = self._bigrams(reached)
            self.by_last = self._choose_last(bigrams, counts)
            in_last = self._within(bigrams, self.by_last, bigrams >> _SYMBOL)
            self.by_class = self._choose_classes(bigrams[~in_last], counts[~in_last])
            of = self.class_of[(bigrams >> _SYMBOL).astype(np.int64)].astype(np.uint64)
            rest = ~in_last & ~self._within(bigrams, self.by_class, of)
            symbols = (bigrams[rest] & _LOW).astype(np.int64)
            self._choose_all(np.bincount(symbols, counts[rest], minlength=self.n))
        self._after_pairs()
        return write_lists(self._lists()), self.bits

    def _bigrams(self, where: Any) -> tuple[Any, Any]:
        keys = self.p1[where].astype(np.uint64) << _SYMBOL | self.stream[where].astype(np.uint64)
        return np.unique(keys, return_counts=True)

    def _choose_all(self, counts: Any) -> None:
        """List 0: every symbol, seen or not; `all_costs` by symbol."""
        symbols = np.append(0, np.arange(2, self.n))
        shares = np.maximum(counts[symbols], 0.4)
        self.all = _quantised(
            np.zeros(1), np.zeros(symbols.size, np.int64), symbols, shares / shares.sum(), np.zeros(1), _ALL
        )
        self.all_costs = np.full(self.n, self.all.escape_costs[0] + 31, np.float32)
        self.all_costs[self.all.symbols] = self.all.costs

    def _classes(self, bigrams: Any, counts: Any) -> Any:
        """A class for every symbol as a context: hard expectation maximisation from the most frequent ones as seeds."""
        from tokzip_core.kernels.context_train import assign_classes

        lasts, symbols = (bigrams >> _SYMBOL).astype(np.int64), (bigrams & _LOW).astype(np.int64)
        column = np.zeros(self.n, np.int64)  # symbols that are told apart; the rest share 0
        common = np.lexsort((np.arange(self.n), -np.bincount(symbols, counts, self.n)))[: CLUSTERED - 1]
        column[common] = np.arange(1, common.size + 1)
        symbols = column[symbols]
        size = common.size + 1
        begins = np.searchsorted(lasts, np.arange(self.n + 1))
        k = max(1, min(CLASSES, self.n // 8))
        seeds = np.lexsort((np.arange(self.n), -np.bincount(lasts, counts, self.n)))[:k]
        classes = np.full(self.n, -1, np.int32)
        classes[seeds] = np.arange(k)
        prior = np.bincount(symbols, counts, size) + 0.05
        prior = (prior / prior.sum()).astype(np.float32)
        for _ in range(5):
            of = classes[lasts]
            seen = of >= 0
            shares = (
                np.bincount(symbols[seen] * k + of[seen], counts[seen], size * k).reshape(size, k).astype(np.float32)
            )
            totals = shares.sum(0) + 300
            assign_classes(begins, symbols, counts, np.log2((shares + 300 * prior[:, None]) / totals), classes)
        classes[classes < 0] = 0
        self.n_classes = k
        return classes

    def _choose_classes(self, bigrams: Any, counts: Any) -> Chosen:
        of = self.class_of[(bigrams >> _SYMBOL).astype(np.int64)].astype(np.uint64)
        keys = of << _SYMBOL | bigrams & _LOW
        unique, where = np.unique(keys, return_inverse=True)
        sums = np.bincount(where, counts, unique.size).astype(np.int64)
        return _spread(
            _choose(unique, sums, lambda keys: self.all_costs[(keys & _LOW).astype(np.int64)], _CLASS), self.n_classes
        )

    def _choose_last(self, bigrams: Any, counts: Any) -> Chosen:
        return _choose(bigrams, counts, lambda keys: self._costs_under(keys, keys >> _SYMBOL, last_too=False), _LAST)

    def _choose_two(self, trigrams: Any, counts: Any) -> Chosen:
        def costs(keys: Any) -> Any:
            return self._costs_under(keys, self.pair_keys[(keys >> _SYMBOL).astype(np.int64)] & _LOW, last_too=True)

        return _choose(trigrams, counts, costs, _TWO)

    def _chain(self, last_too: bool) -> tuple[Any, ...]:
        """The lists by class and, after them, by the last symbol, as the kernels look them up."""
        k, of_class = self.n_classes, self.by_class
        first = self.class_of.astype(np.uint32)
        after = np.full(k, 0xFFFFFFFF, np.uint32)
        if not last_too:
            return first, after, hash_table(of_class.at, of_class.symbols), of_class.costs, of_class.escape_costs
        of_last = self.by_last
        lasts = of_last.contexts.astype(np.int64)
        after = np.append(after, first[lasts])
        first[lasts] = k + np.arange(lasts.size)
        table = hash_table(np.append(of_class.at, k + of_last.at), np.append(of_class.symbols, of_last.symbols))
        costs = np.append(of_class.costs, of_last.costs)
        return first, after, table, costs, np.append(of_class.escape_costs, of_last.escape_costs)

    def _costs(self, lasts: Any, symbols: Any, wanted: Any, last_too: bool) -> Any:
        from tokzip_core.kernels.context_train import chain_costs

        costs = np.zeros(lasts.size, np.float32)
        chain_costs(lasts, symbols, *self._chain(last_too), self.all_costs, wanted, costs)
        return costs

    def _costs_under(self, keys: Any, lasts: Any, last_too: bool) -> Any:
        symbols = (keys & _LOW).astype(np.int32)
        return self._costs(lasts.astype(np.int32), symbols, np.ones(keys.size, np.bool_), last_too)

    def _within(self, bigrams: Any, chosen: Chosen, contexts: Any) -> Any:
        """Which bigrams a list of `chosen` has, their contexts being `contexts`."""
        return np.isin(
            contexts << _SYMBOL | bigrams & _LOW,
            chosen.contexts.astype(np.uint64)[chosen.at] << _SYMBOL | chosen.symbols.astype(np.uint64),
        )

    def _after_pairs(self) -> Any:
        """The tokens that neither a list by two nor the recent tokens take; counts what of the recent is taken."""
        from tokzip_core.kernels.context_train import choose_recent, pair_costs

        two = self.by_two
        keys = self.pair_keys[two.contexts.astype(np.int64)]
        pairs = hash_table(keys >> _SYMBOL, keys & _LOW)
        table = hash_table(two.at, two.symbols)
        above = np.zeros(self.stream.size, np.float32)
        inside = np.empty(self.stream.size, np.bool_)
        pair_costs(self.p2, self.p1, self.stream, pairs, table, two.costs, two.escape_costs, self.free, inside, above)
        reaching = self.free & ~inside
        costs = self._costs(self.p1, self.stream, reaching, last_too=True)
        for _ in range(2):
            self.recent, direct = _choose_recent(self.recent_counts)
            self.recent_counts = np.zeros((10, 257), np.int64)
            escapes = np.append(np.float32(0), self.recent.escape_costs)
            choose_recent(self.stream, self.frequency, reaching, costs, direct, escapes, self.taken, self.recent_counts)
        recent_bits = float((self.recent_counts[:, :256] * direct).sum() + (self.recent_counts[:, 256] * escapes).sum())
        self.bits = self._bits(costs, above, reaching, recent_bits)
        return reaching & ~self.taken

    def _bits(self, costs: Any, above: Any, reaching: Any, recent_bits: float) -> float:
        """Bits a token over the sample, row ends not counted."""
        counted = self.stream != 0
        flags = self.flag_counts + 0.4
        flag_bits = -(self.flag_counts * np.log2(flags / flags.sum(1, keepdims=True))).sum()
        rest = float(costs[reaching & ~self.taken & counted].sum()) + float(above[counted].sum())
        return (float(flag_bits) + recent_bits + rest) / max(1, int(counted.sum()))

    def _lists(self) -> Lists:
        kinds = [self.all, self.recent, self.by_class, self.by_last, self.by_two]
        keys = self.pair_keys[self.by_two.contexts.astype(np.int64)]  # rising: in order of (p2, p1)
        lasts, p1 = self.by_last.contexts.astype(np.int64), (keys & _LOW).astype(np.int64)
        base = 10 + self.n_classes
        first = 10 + self.class_of.astype(np.uint32)
        of_last = first[lasts]
        first[lasts] = base + np.arange(lasts.size)
        after = np.concatenate((np.full(1, 0xFFFFFFFF), np.zeros(9 + self.n_classes), of_last, first[p1])).astype(
            np.uint32
        )
        sizes = np.concatenate([np.bincount(kind.at, minlength=kind.codes.size) for kind in kinds])
        misses, hits = self.flag_counts[:, 0], self.flag_counts[:, 1]
        return Lists(
            ids=self.ids,
            frequency=self.frequency,
            flags=np.minimum(255, 256 * (hits + 0.4) / (hits + misses + 0.8)).astype(np.uint8),
            first=first,
            by_class=self.n_classes,
            after=after,
            begins=np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes))),
            escapes=np.concatenate([kind.codes for kind in kinds]),
            symbols=np.concatenate([kind.symbols for kind in kinds]).astype(np.uint32),
            q=np.concatenate([kind.q for kind in kinds]).astype(np.uint8),
            pairs=p1.astype(np.uint32),
            pair_counts=np.bincount((keys >> _SYMBOL).astype(np.int64), minlength=self.n).astype(np.uint32),
        )


def _choose(keys: Any, counts: Any, costs_of: Any, scale: int) -> Chosen:
    """The entries worth keeping among `keys` (context << 21 | symbol, rising) seen `counts` times.

    costs_of: keys to the bits each symbol takes under the lists below, which is what it also takes in the codebook.
    """
    contexts = keys >> _SYMBOL
    begins = np.flatnonzero(np.append(True, contexts[1:] != contexts[:-1])) if keys.size else np.zeros(0, np.int64)
    totals = np.add.reduceat(counts, begins).astype(np.float64) if keys.size else np.zeros(0)
    of = np.repeat(np.arange(begins.size), np.diff(np.append(begins, keys.size)))
    often = counts >= 2
    keys, of, counts = keys[often], of[often], counts[often].astype(np.float64)
    lower = costs_of(keys).astype(np.float64)
    price = WORTH * (lower + ENTRY)
    less = counts - DISCOUNT
    keep = np.ones(keys.size, np.bool_)
    for _ in range(4):
        escape = totals + 0.5 - np.bincount(of[keep], less[keep], totals.size)
        other = np.where(keep, escape[of], np.maximum(escape[of] - less, 0.5))  # the escape's weight if it is kept
        gain = counts * (np.log2(less / (other + less)) + lower)
        gain += np.maximum(other - 0.5 - DISCOUNT, 0) * np.log2(other / (other + less))
        keep = gain > price
    if np.count_nonzero(keep) > MOST:
        keep[np.argsort(np.where(keep, price - gain, np.inf), kind="stable")[MOST:]] = False
    escape = totals + 0.5 - np.bincount(of[keep], less[keep], totals.size)
    rest = totals - np.bincount(of[keep], counts[keep], totals.size)
    saved = counts * (np.log2(less / (totals[of] + 0.5)) + lower) - price
    gain = np.bincount(of[keep], saved[keep], totals.size) + rest * np.log2(escape / (totals + 0.5)) - WORTH * LIST
    keep &= (gain > 0)[of]
    used, at = np.unique(of[keep], return_inverse=True)
    shares = less[keep] / (totals[of[keep]] + 0.5)
    return _quantised(contexts[begins][used], at, keys[keep] & _LOW, shares, escape[used] / (totals[used] + 0.5), scale)


def _quantised(contexts: Any, at: Any, symbols: Any, shares: Any, escapes: Any, scale: int) -> Chosen:
    """Lists whose weights come to about 2^scale. shares, escapes: of entries and of lists, float64."""
    q = np.clip(np.round(np.log2(shares) + scale), 0, scale).astype(np.int64)
    order = np.lexsort((symbols, -q, at))
    at, q = at[order], q[order]
    held = np.bincount(at, np.exp2(q), escapes.size)
    # Codes are of the next step up, so the step's middle is asked for; an escape has at least 1/64 of its list.
    codes = np.maximum(escape_code(np.maximum(1, escapes * 2.0**scale * 0.92)), escape_code(held / 63 + 1))
    weights = escape_weights(codes)
    log_totals = np.log2(held + weights)
    costs = (log_totals[at] - q).astype(np.float32)
    return Chosen(contexts, at, symbols[order], q, codes, costs, (log_totals - np.log2(weights)).astype(np.float32))


def _spread(chosen: Chosen, n: int) -> Chosen:
    """With a list, maybe empty, for each of the contexts 0 … n - 1."""
    where = chosen.contexts.astype(np.int64)
    codes, escape_costs = np.zeros(n, np.uint8), np.zeros(n, np.float32)
    codes[where], escape_costs[where] = chosen.codes, chosen.escape_costs
    return Chosen(np.arange(n), where[chosen.at], chosen.symbols, chosen.q, codes, chosen.costs, escape_costs)


def _choose_recent(counts: Any) -> tuple[Chosen, Any]:
    """Lists of distances, from counts[list, distance or, last, escape], and costs, float32[10, 256]."""
    sizes = np.minimum(256, (1 << np.arange(1, 10)) - 1)
    shares, escapes = [], np.zeros(9)
    for i, size in enumerate(sizes):
        edges = np.unique(np.minimum(size, np.round(np.exp2(np.arange(17) / 2)).astype(np.int64) - 1))  # half octaves
        widths = np.diff(np.append(edges, size))
        edges, widths = edges[widths > 0], widths[widths > 0]
        means = (np.add.reduceat(counts[i + 1, :size], edges) + 0.2 * widths) / widths
        falling = np.minimum.accumulate(np.repeat(means, widths))
        escaped = counts[i + 1, 256] + 2 * falling.sum() + 1
        shares.append(falling / (falling.sum() + escaped))
        escapes[i] = escaped / (falling.sum() + escaped)
    at = np.repeat(np.arange(9), sizes)
    distances = np.concatenate([np.arange(size) for size in sizes])
    chosen = _quantised(np.arange(9), at, distances, np.concatenate(shares), escapes, _RECENT)
    costs = np.full((10, 256), 99, np.float32)
    costs[chosen.at + 1, chosen.symbols] = chosen.costs
    return chosen, costs
