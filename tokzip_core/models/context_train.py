"""Training of the `context` model: which n-grams are worth their place, and what weighs what. Imports models, kernels.

Lists are chosen from the least context to the most, each against what the lists under it would pay, and then counted
again on the tokens that reach them: after matches, after an escape from above, after recent tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.columns import Int64s, UInt32s
from tokzip_core.models.context import MAX_IDS, Lists, hash_table, write_lists
from tokzip_core.models.context_lists import SYMBOL_BITS, Chosen, choose, choose_recent_lists, quantised
from tokzip_core.models.order0 import Order0

CLASSES = 256
CLUSTERED = 1 << 16  # only so many symbols are told apart while clustering
ROUNDS = 3
_SYMBOL = np.uint64(SYMBOL_BITS)
_LOW = np.uint64((1 << SYMBOL_BITS) - 1)
_RARITY = np.array([8, 32, 128, 512, 2048, 8192, 32768])  # ranks where a rarity ends
_ALL, _CLASS, _LAST, _TWO = 22, 16, 14, 14  # log2 of about the weight of a list of each kind


def train_lists(counts: Order0, tokens: UInt32s, lengths: Int64s) -> tuple[bytes, float]:
    """The codebook body for a sample (rows of `lengths`, one after the other), and the bits a token that it then takes.

    counts: of all tokens; its ids are those that are known. Row ends are not in the bits.
    """
    order = np.lexsort((counts.ids, -counts.counts))[:MAX_IDS]
    ids = np.sort(counts.ids[order])
    rank = np.empty(ids.size, np.int64)
    rank[np.searchsorted(ids, counts.ids[order])] = np.arange(ids.size)
    rarity = np.full(ids.size + 2, 7, np.uint32)
    rarity[0] = 0
    rarity[2:] = np.searchsorted(_RARITY, rank, "right")
    at = np.searchsorted(ids, tokens)
    known = at < ids.size
    known[known] = ids[at[known]] == tokens[known]
    stream = np.zeros(tokens.size + lengths.size, np.uint32)
    stream[np.arange(tokens.size) + np.repeat(np.arange(lengths.size), lengths)] = np.where(known, at + 2, 1)
    return _Training(ids, rarity, stream).run()


class _Training:
    def __init__(self, ids: Any, rarity: Any, stream: Any) -> None:
        from tokzip_core.kernels.context_body import FLAGS
        from tokzip_core.kernels.context_train import count_matches

        self.ids, self.rarity, self.stream = ids, rarity, stream
        self.n = rarity.size
        held = np.empty(stream.size, np.bool_)
        self.flag_counts = np.zeros((FLAGS, 2), np.int64)
        count_matches(stream, rarity, held, self.flag_counts)
        self.free = np.flatnonzero(~held & (stream != 1))  # neither foretold nor unknown: what lists are for
        p1 = np.concatenate((np.zeros(1, np.uint32), stream[:-1]))[: stream.size]
        p2 = np.concatenate((np.zeros(1, np.uint32), p1[:-1]))[: stream.size]
        p2[p1 == 0] = 0
        self.symbols, self.p1 = stream[self.free], p1[self.free]
        pair_keys = p2[self.free].astype(np.uint64) << _SYMBOL | self.p1
        self.pair_keys, self.pair_of = np.unique(pair_keys, return_inverse=True)
        self.distances = np.zeros((10, 256), np.int64)

    def run(self) -> tuple[bytes, float]:
        trigrams, trigram_counts = np.unique(
            self.pair_of.astype(np.uint64) << _SYMBOL | self.symbols, return_counts=True
        )
        bigrams, counts = self._bigrams(slice(None))
        self._choose_all(np.bincount(self.symbols, minlength=self.n))
        self.class_of = self._classes(bigrams, counts)
        self.by_class = self._choose_classes(bigrams, counts, np.zeros(self.n_classes))
        self.by_class.recent_costs[:] = 3
        self.by_last = self._choose_last(bigrams, counts)
        for _ in range(ROUNDS):
            self.by_two = self._choose_two(trigrams, trigram_counts)
            reached = np.flatnonzero(~self._inside(self.by_two, self.pair_of, self.pair_keys.size)[0])
            bigrams, counts = self._bigrams(reached)
            self.by_last = self._choose_last(bigrams, counts)
            left, recent_counts = self._after_last(reached)
            bigrams, counts = self._bigrams(left)
            self.by_class = self._choose_classes(bigrams, counts, recent_counts)
            of = self.class_of[(bigrams >> _SYMBOL).astype(np.int64)].astype(np.uint64)
            rest = ~self._within(bigrams, self.by_class, of)
            symbols = (bigrams[rest] & _LOW).astype(np.int64)
            self._choose_all(np.bincount(symbols, counts[rest], minlength=self.n))
        return write_lists(self._lists()), self._bits()

    def _bigrams(self, where: Any) -> tuple[Any, Any]:
        keys = self.p1[where].astype(np.uint64) << _SYMBOL | self.symbols[where]
        return np.unique(keys, return_counts=True)

    def _choose_all(self, counts: Any) -> None:
        """List 0: every symbol, seen or not; `all_costs` by symbol."""
        symbols = np.append(0, np.arange(2, self.n))
        shares = np.maximum(counts[symbols], 0.4)
        self.all = quantised(
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

    def _choose_classes(self, bigrams: Any, counts: Any, recent_counts: Any) -> Chosen:
        of = self.class_of[(bigrams >> _SYMBOL).astype(np.int64)].astype(np.uint64)
        unique, where = np.unique(of << _SYMBOL | bigrams & _LOW, return_inverse=True)
        sums = np.bincount(where, counts, unique.size).astype(np.int64)
        return choose(unique, sums, lambda keys: self.all_costs[(keys & _LOW).astype(np.int64)], _CLASS, recent_counts)

    def _choose_last(self, bigrams: Any, counts: Any) -> Chosen:
        return choose(bigrams, counts, lambda keys: self._costs_under(keys, keys >> _SYMBOL, last_too=False), _LAST)

    def _choose_two(self, trigrams: Any, counts: Any) -> Chosen:
        def costs(keys: Any) -> Any:
            return self._costs_under(keys, self.pair_keys[(keys >> _SYMBOL).astype(np.int64)] & _LOW, last_too=True)

        return choose(trigrams, counts, costs, _TWO)

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

    def _costs(self, lasts: Any, symbols: Any, last_too: bool) -> Any:
        from tokzip_core.kernels.context_train import chain_costs

        costs = np.zeros(lasts.size, np.float32)
        chain_costs(lasts, symbols, *self._chain(last_too), self.all_costs, costs)
        return costs

    def _costs_under(self, keys: Any, lasts: Any, last_too: bool) -> Any:
        return self._costs(lasts.astype(np.uint32), (keys & _LOW).astype(np.uint32), last_too)

    def _within(self, bigrams: Any, chosen: Chosen, contexts: Any) -> Any:
        """Which bigrams a list of `chosen` has, their contexts being `contexts`."""
        return np.isin(
            contexts << _SYMBOL | bigrams & _LOW,
            chosen.contexts.astype(np.uint64)[chosen.at] << _SYMBOL | chosen.symbols.astype(np.uint64),
        )

    def _inside(self, chosen: Chosen, contexts: Any, n: int, where: Any = slice(None)) -> tuple[Any, Any]:
        """Of the free tokens `where`: whether the list of their contexts (of `n`) has them, and what that takes."""
        from tokzip_core.kernels.context_train import list_costs

        symbols = self.symbols[where]
        numbers = np.full(n, -1, np.int32)
        numbers[chosen.contexts.astype(np.int64)] = np.arange(chosen.contexts.size)
        inside, costs = np.empty(symbols.size, np.bool_), np.empty(symbols.size, np.float32)
        table = hash_table(chosen.at, chosen.symbols)
        list_costs(numbers[contexts[where]], symbols, table, chosen.costs, chosen.escape_costs, inside, costs)
        return inside, costs

    def _after_last(self, reached: Any) -> tuple[Any, Any]:
        """Of free tokens `reached`, those that neither the list by the last nor the recent tokens take.

        And how often a recent token is taken by class.
        """
        from tokzip_core.kernels.context_train import choose_recent

        inside, above = self._inside(self.by_last, self.p1, self.n, reached)
        reaching = reached[~inside]
        costs = np.zeros(self.stream.size, np.float32)
        classes = np.full(self.stream.size, -1, np.int32)
        costs[self.free[reaching]] = self._costs(self.p1[reaching], self.symbols[reaching], last_too=False)
        classes[self.free[reaching]] = self.class_of[self.p1[reaching]]
        taken = np.empty(self.stream.size, np.bool_)
        recent_costs = self.by_class.recent_costs
        for _ in range(2):
            self.recent, direct = choose_recent_lists(self.distances)
            self.distances[:] = 0
            by_class = np.zeros(self.n_classes, np.int64)
            choose_recent(
                self.stream, self.rarity, classes, costs, direct, recent_costs, taken, self.distances, by_class
            )
        self.above, self.taken_bits = float(above.sum()), float((self.distances * direct).sum())
        return reaching[~taken[self.free[reaching]]], by_class

    def _bits(self) -> float:
        """Bits a token over the sample, row ends not counted."""
        inside, by_two = self._inside(self.by_two, self.pair_of, self.pair_keys.size)
        left, recent_counts = self._after_last(np.flatnonzero(~inside))
        rest = self._costs(self.p1[left], self.symbols[left], last_too=False)
        chances = (self.flag_counts + 0.4) / (self.flag_counts + 0.4).sum(1, keepdims=True)
        flags = -(self.flag_counts * np.log2(chances)).sum()
        recent = self.taken_bits + float((recent_counts * self.by_class.recent_costs).sum())
        ends = float(by_two[self.symbols == 0].sum() + rest[self.symbols[left] == 0].sum())
        bits = flags + float(by_two.sum()) + self.above + recent + float(rest.sum()) - ends
        return float(bits) / max(1, int(np.count_nonzero(self.stream)))

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
            rarity=self.rarity.astype(np.uint8),
            flags=np.minimum(255, 256 * (hits + 0.4) / (hits + misses + 0.8)).astype(np.uint8),
            first=first,
            by_class=self.n_classes,
            after=after,
            begins=np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes))),
            escapes=np.concatenate([kind.codes for kind in kinds]),
            recents=np.concatenate([kind.recents for kind in kinds]),
            symbols=np.concatenate([kind.symbols for kind in kinds]).astype(np.uint32),
            q=np.concatenate([kind.q for kind in kinds]).astype(np.uint8),
            pairs=p1.astype(np.uint32),
            pair_counts=np.bincount((keys >> _SYMBOL).astype(np.int64), minlength=self.n).astype(np.uint32),
        )
