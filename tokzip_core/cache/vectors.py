"""Vectors in a cache: keys of their coding, values coded, what coding costs measured. Imports layered and values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokzip_core.cache.index import key_words
from tokzip_core.cache.layer import KEY
from tokzip_core.cache.layered import LayeredCache
from tokzip_core.cache.values import ValueCoding, Vectors

NEIGHBOURS = 10
_SAMPLE = 512  # vectors of one `put` compared with what the cache will give for them: some 10 ms


class VectorCache:
    """float32 vectors by 32-byte keys, in `layers`, as `coding` (one of `values.CODINGS`) stores them.

    Safe to share between threads. Without any layer, nothing is coded. Raises CacheError for an unknown coding.
    """

    def __init__(self, layers: LayeredCache, coding: str = "lossless") -> None:
        self.layers = layers
        self.coding = ValueCoding(coding)
        self._mask = np.frombuffer(self.coding.mask, np.uint64)

    @property
    def exact(self) -> bool:
        """Whether a vector comes back with the bits that it was put with."""
        return self.coding.exact or not self.layers.layers

    def lookup(
        self, keys: pa.FixedSizeBinaryArray, dimension: int
    ) -> tuple[Vectors, npt.NDArray[np.bool_], dict[str, int]]:
        """Vectors `[keys, dimension]`, which of them were found (the others mean nothing), and the hits by layer.

        A value that is none of a vector of this dimension is a miss, counted as `corrupt` and to be put anew.
        """
        own = self._own(keys)
        values, depths = self.layers.find(own)
        if values.null_count == len(values):
            nothing = np.empty((len(values), dimension), np.float32)
            return nothing, np.zeros(len(values), np.bool_), self.layers.hits(depths)
        vectors, found = self.coding.decode(values, dimension)
        bad = (depths >= 0) & ~found
        if bad.any():
            self.layers.refuse(own.filter(pa.array(bad)), depths[bad])
        return vectors, found, self.layers.hits(depths[found])

    def put(self, keys: pa.FixedSizeBinaryArray, vectors: Vectors) -> tuple[Vectors, dict[str, float]]:
        """Keep the vectors, float32 `[keys, dimension]`. Returns them as every later look-up will give them, so that a
        result does not depend on what was cached; and sums to be added up over calls:

        cache_values, cache_value_bytes: how many, and their bytes as stored. Of a lossy coding also, of a sample:
        cache_sampled, how many; cache_cosine, the sum of their cosines to what was given; cache_neighbours and
        cache_neighbours_kept, how many nearest neighbours within the sample there are, and are the same after coding.
        """
        if not self.layers.layers:
            return vectors, {}
        values = self.coding.encode(vectors)
        self.layers.put_many(self._own(keys), values)
        size = pc.sum(pc.binary_length(values)).as_py() or 0
        stats: dict[str, float] = {"cache_values": len(values), "cache_value_bytes": size}
        if self.coding.exact:
            return vectors, stats
        stored, _ = self.coding.decode(values, vectors.shape[1])
        if len(vectors) > NEIGHBOURS:
            chosen = np.linspace(0, len(vectors) - 1, min(_SAMPLE, len(vectors))).astype(np.int64)
            stats |= fidelity(vectors[chosen], stored[chosen])
        return stored, stats

    def events(self) -> dict[str, int]:
        """`cache_failed.redis` and the like: how often since the last call."""
        return {f"cache_{name}": count for name, count in self.layers.events().items()}

    def flush(self) -> None:
        """Write what a layer holds back: at the end of a piece of work, or before a process may be ended."""
        self.layers.flush()

    def close(self) -> None:
        self.layers.close()

    def _own(self, keys: pa.FixedSizeBinaryArray) -> pa.FixedSizeBinaryArray:
        words = key_words(keys) ^ self._mask
        return pa.FixedSizeBinaryArray.from_buffers(KEY, len(keys), [None, pa.py_buffer(words)])


def fidelity(vectors: Vectors, stored: Vectors) -> dict[str, float]:
    """How near `stored` is to `vectors` (float32 `[n, d]`, n > NEIGHBOURS), as `VectorCache.put` tells it."""
    true, near = _unit(vectors), _unit(stored)
    wanted, found = true @ true.T, near @ near.T
    for similar in (wanted, found):
        np.fill_diagonal(similar, -np.inf)
    a, b = (np.argpartition(-similar, NEIGHBOURS, axis=1)[:, :NEIGHBOURS] for similar in (wanted, found))
    kept = int((a[:, :, None] == b[:, None, :]).sum())
    return {
        "cache_sampled": len(vectors),
        "cache_cosine": float((true * near).sum()),
        "cache_neighbours": a.size,
        "cache_neighbours_kept": kept,
    }


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)
