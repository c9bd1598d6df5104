"""Rows to vectors through a cache, each distinct row computed once. Imports model and tokzip_core.cache."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.inference import rows as ragged
from pipelines.inference.identity import row_keys
from pipelines.inference.model import EmbeddingModel, load_model
from pipelines.inference.rows import Rows
from pipelines.stage import Stats
from tokzip_core.cache import CacheSpec, LayeredCache, parse_cache_spec
from tokzip_core.errors import InvalidTokensError

# Rows folded and looked up together: bounds the vectors in flight, and a value array of the cache (2 GiB).
_ROWS_AT_ONCE = 8192


class CachedEncoder:
    """A model behind a cache. Safe to share between threads.

    model: an `EmbeddingModel`, or the name or folder of one. cache: `memory:256MB,disk:PATH:20GB`, `none`, or
    an open cache. `stats` sums up since the start what `encode` reports a call: rows, rows_folded (equal to
    another of the same call), rows_truncated, rows_windowed, cache_hits.<layer>, rows_computed,
    tokens_computed, seconds.lookup, seconds.model.
    """

    def __init__(self, model: EmbeddingModel | str, cache: LayeredCache | CacheSpec | str = "none") -> None:
        spec = parse_cache_spec(cache) if isinstance(cache, str) else cache
        self.cache = spec if isinstance(spec, LayeredCache) else spec.open()
        self.model = load_model(model) if isinstance(model, str) else model
        self.stats = Stats()
        self._lock = threading.Lock()

    def encode(self, rows: pa.ListArray | Sequence[Any] | Rows, stats: Stats | None = None) -> np.ndarray:
        """Vectors, float32 `[rows, dimension]`, in the order of the rows: token ids without special tokens.

        Raises InvalidTokensError, before anything is computed, for a null row or one that the model refuses.
        """
        if isinstance(rows, pa.Array | pa.ChunkedArray):
            rows = ragged.from_arrow(rows)
        elif not isinstance(rows, Rows):
            rows = ragged.from_sequences(rows)
        if refused := self.model.refused(rows):
            raise InvalidTokensError(f"row {min(refused)}: {refused[min(refused)]}")
        done = Stats()
        out = np.empty((len(rows), self.model.dimension), np.float32)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = np.arange(start, min(start + _ROWS_AT_ONCE, len(rows)))
            out[part] = self._encode(rows.take(part), done)
        with self._lock:
            for total in (self.stats, stats):
                for name, amount in done.items() if total is not None else ():
                    total.add(name, amount)
        return out

    def _encode(self, rows: Rows, stats: Stats) -> np.ndarray:
        with stats.time("lookup"):
            rows, longer = self.model.clip(rows)
            folded = row_keys(self.model.fingerprint, rows).dictionary_encode()
            keys, codes = folded.dictionary, folded.indices.to_numpy()
            distinct = rows.take(np.unique(codes, return_index=True)[1])
            vectors = np.empty((len(keys), self.model.dimension), np.float32)
            found, hits = self._look_up(keys, vectors)
        missing = np.flatnonzero(~found)
        if len(missing):
            todo = distinct.take(missing)
            with stats.time("model"):
                vectors[missing] = self.model.embed(todo)
            with stats.time("lookup"):
                self.cache.put_many(keys.take(pa.array(missing)), _as_values(vectors[missing]))
            stats.add("tokens_computed", self.model.tokens(todo))
        stats.add("rows", len(rows))
        stats.add("rows_folded", len(rows) - len(keys))
        stats.add("rows_truncated" if self.model.settings.long_rows == "truncate" else "rows_windowed", longer)
        stats.add("rows_computed", len(missing))
        for name, count in hits.items():
            stats.add(f"cache_hits.{name}", count)
        return vectors[codes]

    def _look_up(self, keys: pa.FixedSizeBinaryArray, vectors: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
        """Fill in the vectors that the cache has; which they are (bool), and the hits by layer.

        A value of another length cannot be this model's vector, and is as good as none.
        """
        values, hits = self.cache.lookup(keys)
        bytes_each = vectors.dtype.itemsize * vectors.shape[1]
        found = np.asarray(pc.fill_null(pc.equal(pc.binary_length(values), bytes_each), False))
        if found.any():
            good = values if found.all() else values.filter(pa.array(found))
            data = np.frombuffer(
                good.buffers()[2], "<f4", offset=int(np.frombuffer(good.buffers()[1], "<i4")[good.offset])
            )
            vectors[found] = data[: found.sum() * vectors.shape[1]].reshape(-1, vectors.shape[1])
        return found, hits

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()


def _as_values(vectors: np.ndarray) -> pa.BinaryArray:
    """The vectors' little-endian bytes, one value each."""
    data = np.ascontiguousarray(vectors, "<f4")
    ends = np.arange(len(data) + 1, dtype=np.int32) * (data.itemsize * data.shape[1])
    return pa.Array.from_buffers(pa.binary(), len(data), [None, pa.py_buffer(ends), pa.py_buffer(data)])
