"""Rows to vectors through a cache, each distinct row computed once. Imports model, tokenizing, tokzip_core."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

import tokzip_core as tz
from pipelines.inference import rows as ragged
from pipelines.inference.identity import row_keys
from pipelines.inference.model import EmbeddingModel, load_model
from pipelines.inference.rows import Rows
from pipelines.inference.settings import ModelError
from pipelines.stage import Stats
from pipelines.tokenizing import Tokenizer, load_tokenizer
from tokzip_core.cache import CacheSpec, LayeredCache, VectorCache, parse_cache_spec
from tokzip_core.errors import InvalidTokensError

# Rows folded and looked up together: bounds the vectors in flight, and a value array of the cache (2 GiB).
_ROWS_AT_ONCE = 8192


class CachedEncoder:
    """A model behind a cache. Safe to share between threads.

    model: an `EmbeddingModel` (`load_model` has the options), or the name or folder of one. cache:
    `memory:256MB,disk:PATH:20GB`, `none`, or an open cache. cache_values: how vectors are stored in it, one of
    `tokzip_core.cache.CODINGS`; with a lossy coding, rows computed now come out as the cache will give them.
    Raises ModelError. `stats` sums up since the start what `encode` reports a call: rows, rows_folded (equal to
    another of the same call), rows_truncated, rows_windowed, cache_hits.<layer>, rows_computed, tokens_computed,
    seconds.lookup, seconds.model, and what `VectorCache.put` and `VectorCache.events` tell.
    """

    def __init__(
        self,
        model: EmbeddingModel | str | os.PathLike[str],
        cache: LayeredCache | CacheSpec | str = "none",
        cache_values: str = "lossless",
    ) -> None:
        if not isinstance(model, EmbeddingModel | str | os.PathLike):
            raise TypeError(f"model: expected an EmbeddingModel, or the name or folder of one, got {model!r:.60}")
        spec = parse_cache_spec(cache) if isinstance(cache, str) else cache
        self.cache = VectorCache(spec if isinstance(spec, LayeredCache) else spec.open(), cache_values)
        self.model = model if isinstance(model, EmbeddingModel) else load_model(os.fspath(model))
        self.stats = Stats()
        self._lock = threading.Lock()
        self._own_tokenizer: Tokenizer | None = None
        self._closed = False

    def encode(
        self,
        rows: pa.Array | pa.ChunkedArray | Iterable[Any] | Rows,
        stats: Stats | None = None,
        codebook: tz.Codebook | None = None,
    ) -> np.ndarray:
        """Vectors, float32 `[rows, dimension]`, in the order of the rows.

        rows: an Arrow column or any iterable (list, numpy array, pandas Series, generator …) of token ids without
        special tokens; of token blobs, with their `codebook` (bare bytes: those without row checksums); or of texts,
        for the model's own tokenizer, with the model's default prompt and in lower case where sentence-transformers
        would have it so.
        Raises, before anything is computed, InvalidTokensError for what is none of these, a null row, one of another
        kind or one that the model refuses; what `tokzip_core.decode` raises for blobs; ModelError or InputError for
        texts where the model has no tokenizer; ValueError after `close`.
        """
        if self._closed:
            raise ValueError("the encoder is closed")
        rows = self._tokens(rows, codebook)
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
        if stats is not None:
            stats.observed += done.observed
        return out

    def _tokens(self, rows: Any, codebook: tz.Codebook | None) -> Rows:
        rows = ragged.from_any(rows)
        if isinstance(rows, Rows):
            return rows
        if not ragged.is_blobs(rows.type):
            if (settings := self.model.settings).expected_texts:
                rows = pa.array(settings.prepared(rows.to_pylist()), pa.string())
            tokenizer = self._tokenizer()
            if len(rows):
                tokenizer.probe(rows)
            return ragged.from_arrow(tokenizer.encode(rows))
        if codebook is None:
            which = f", {rows.type.codebook_id}" if isinstance(rows.type, tz.TokenBlobType) else ""
            raise InvalidTokensError(f"token blobs are read with their codebook{which}: pass it as `codebook`")
        return ragged.from_arrow(tz.decode(rows, codebook))

    def _tokenizer(self) -> Tokenizer:
        """The model's own, the very one that stage 1 runs."""
        with self._lock:
            if self._own_tokenizer is None:
                if self.model.name is None:
                    raise ModelError("texts need the model's tokenizer: load the model by name, or give token ids")
                self._own_tokenizer = Tokenizer(load_tokenizer(self.model.name))
            return self._own_tokenizer

    def _encode(self, rows: Rows, stats: Stats) -> np.ndarray:
        with stats.time("lookup"):
            rows, longer = self.model.clip(rows)
            folded = row_keys(self.model.fingerprint, rows).dictionary_encode()
            keys, codes = folded.dictionary, folded.indices.to_numpy()
            distinct = rows.take(np.unique(codes, return_index=True)[1])
            vectors, found, hits = self.cache.lookup(keys, self.model.dimension)
        missing = np.flatnonzero(~found)
        if len(missing):
            todo = distinct.take(missing)
            start = time.perf_counter()
            computed = self.model.embed(todo)
            took = time.perf_counter() - start
            stats.add("seconds.model", took)
            stats.observed += [
                ("inference_request_batch_size", len(missing)),
                ("inference_batch_latency_micro_secs", took * 1e6),
            ]
            with stats.time("lookup"):
                vectors[missing], stored = self.cache.put(keys.take(pa.array(missing)), computed)
            stats.add("tokens_computed", self.model.tokens(todo))
            for name, amount in stored.items():
                stats.add(name, amount)
        stats.add("rows", len(rows))
        stats.add("rows_folded", len(rows) - len(keys))
        stats.add("rows_truncated" if self.model.settings.long_rows == "truncate" else "rows_windowed", longer)
        stats.add("rows_computed", len(missing))
        for name, count in hits.items():
            stats.add(f"cache_hits.{name}", count)
        for name, count in self.cache.events().items():
            stats.add(name, count)
        return vectors[codes]

    def flush(self) -> None:
        """Have the cache write what it holds back."""
        self.cache.flush()

    def close(self) -> None:
        """Close the cache, which writes what it holds back. Nothing can be encoded any more."""
        self._closed = True
        self.cache.close()
