"""The order-1 model: which id follows which, the ids before it put into clusters that share what follows.

Imports numpy, columns, models, kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokzip_core.columns import Column, Int64s, UInt32s
from tokzip_core.models.order0 import Order0

START = 1 << 31  # stands before the first token of a row
FORGOTTEN = START + 1  # stands before a token of a pair that was too rare to be kept
MAX_PAIRS = 1 << 23
CLUSTERS = 125  # and the three contexts beside them: a power of two, so that the decoder has no empty tables
ROUNDS = 5
_CELL_BITS = 14.0  # what a cell costs in a codebook
_SUCCESSORS = 1 << 14  # the commonest ids, by which clusters are formed
_CONTEXT = 24  # how often a context must occur to be put into a cluster


class Order1:
    """Sparse counts of pairs, `before << 32 | id`. Adding commutes while there are at most MAX_PAIRS.

    Beyond that, the commonest half is kept; of the others, how often each id occurred, after FORGOTTEN.
    """

    def __init__(self) -> None:
        self.pairs = Order0(np.uint64)

    def add(self, column: Column) -> None:
        tokens = column.tokens()
        lengths = column.ends - column.starts
        before = np.concatenate((np.zeros(1, np.uint64), tokens))[:-1].astype(np.uint64)
        before[(np.cumsum(lengths) - lengths)[lengths > 0]] = START
        self.pairs.count(before << np.uint64(32) | tokens)
        self._forget()

    def merge(self, other: Order1) -> None:
        self.pairs.merge(other.pairs)
        self._forget()

    def _forget(self) -> None:
        ids, counts = self.pairs.ids, self.pairs.counts
        if ids.size <= MAX_PAIRS:
            return
        rare = np.argsort(-counts, kind="stable")[MAX_PAIRS // 2 :]
        lost, where = np.unique(ids[rare] & np.uint64(0xFFFFFFFF), return_inverse=True)
        self.pairs.ids, self.pairs.counts = np.delete(ids, rare), np.delete(counts, rare)
        sums = np.bincount(where, counts[rare], lost.size).astype(np.int64)
        self.pairs.add_counts(np.uint64(FORGOTTEN << 32) | lost, sums)

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return self.pairs.tokens

    @property
    def entropy(self) -> float:
        """Of order 0, in bits a token; 0 for no tokens."""
        return self.order0().entropy

    def order0(self) -> Order0:
        """The counts of single ids."""
        single = Order0()
        ids, where = np.unique((self.pairs.ids & np.uint64(0xFFFFFFFF)).astype(np.uint32), return_inverse=True)
        single.add_counts(ids, np.bincount(where, self.pairs.counts, ids.size).astype(np.int64))
        return single


@dataclass
class Clusters:
    """`counts` (int64) of `cells` (int64, rising: cluster << 20 | number of the id), and the cluster of each id.

    of: int64[n + 1], the last is START's; `size` stands for none. escaped: int64[size], what no cell covers.
    """

    size: int
    of: Int64s
    cells: Int64s
    counts: Int64s
    escaped: Int64s


def cluster(model: Order1, ids: UInt32s, order0: Int64s, most: int) -> tuple[Clusters, Int64s]:
    """Cluster the contexts by what follows them, and count (int64, by id) what no kept cell covers.

    ids: uint32[n], rising, at most 2^20; order0: int64[n], their counts; most: of clusters. Pairs of other ids are
    left out. Hard clusters by likelihood (Brown et al. 1992 state the aim; the method is k-means with the
    Kullback-Leibler divergence), started from the commonest contexts.
    """
    n = ids.size
    known = np.append(ids, np.uint32(START))
    before = np.searchsorted(known, (model.pairs.ids >> np.uint64(32)).astype(np.uint32)).clip(0, n)
    after = np.searchsorted(known, (model.pairs.ids & np.uint64(0xFFFFFFFF)).astype(np.uint32)).clip(0, n)
    sound = known[before] == (model.pairs.ids >> np.uint64(32))
    sound &= known[after] == (model.pairs.ids & np.uint64(0xFFFFFFFF))
    counts = model.pairs.counts
    of, size = _assign(before[sound], after[sound], counts[sound], n, order0, most)
    cluster_of_pair = np.where(sound, of[before], size)
    keys, where = np.unique(cluster_of_pair << 20 | after, return_inverse=True)
    sums = np.bincount(where, counts, keys.size).astype(np.int64)
    owner, member = keys >> 20, keys & 0xFFFFF
    totals = np.bincount(owner, sums, size + 1)
    # A cell pays where coding by it beats an escape (about 3 bits) and the shared code by more than its own cost.
    with np.errstate(divide="ignore"):
        gain = sums * (3 + np.log2(totals[owner] / sums) * -1 - np.log2(order0[member.clip(0, n - 1)] / order0.sum()))
    kept = (owner < size) & (member < n) & (gain > _CELL_BITS)
    left = np.bincount(member[~kept], sums[~kept], n + 1)[:n].astype(np.int64)
    used, numbers = np.unique(owner[kept], return_inverse=True)
    renumbered = np.full(size + 1, used.size)
    renumbered[used] = np.arange(used.size)
    cells = numbers.astype(np.int64) << 20 | member[kept]
    covered = np.bincount(numbers, sums[kept], used.size)
    return Clusters(used.size, renumbered[of], cells, sums[kept], (totals[used] - covered).astype(np.int64)), left


def _assign(before: Int64s, after: Int64s, counts: Int64s, n: int, order0: Int64s, most: int) -> tuple[Int64s, int]:
    """The cluster of each of n + 1 contexts, and how many clusters there are (which stands for none)."""
    from tokzip_core.kernels.clusters import nearest

    rank = np.empty(n, np.int64)
    rank[np.argsort(-order0, kind="stable")] = np.arange(n)
    common = rank[after] < _SUCCESSORS if n else np.zeros(0, bool)
    rows = min(n, _SUCCESSORS)
    totals = np.bincount(before, counts, n + 1)
    contexts = np.argsort(-totals, kind="stable")
    contexts = contexts[totals[contexts] >= _CONTEXT]
    size = min(CLUSTERS, most, contexts.size // 4)
    of = np.full(n + 1, size)
    if not size:
        return of, 0
    of[contexts[:size]] = np.arange(size)
    bounds = np.searchsorted(before, np.arange(n + 2))  # pairs are in order of the context
    successors, weights = np.where(common, rank[after], rows), counts.astype(np.float32)
    prior = np.bincount(successors, counts, rows + 1) + 1.0
    prior /= prior.sum()
    for _ in range(ROUNDS):
        seen = of[before] < size
        table = np.bincount(successors[seen] * size + of[before][seen], counts[seen], (rows + 1) * size)
        table = table.reshape(rows + 1, size)
        smoothing = 64.0
        costs = -np.log2((table + smoothing * prior[:, None]) / (table.sum(0) + smoothing)).astype(np.float32)
        nearest(contexts, bounds, successors, weights, costs, of)
    return of, size
