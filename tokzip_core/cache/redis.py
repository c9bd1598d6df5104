"""The Redis layer: a server that several machines share. Imports redis, and kernels when used.

An entry is the string `tokzip:2:` + key: 8 bytes of checksum (little-endian; XXH64 of the value, seeded with the key's
last 8 bytes), then the value. What is kept for how long is the server's to say (`maxmemory`, `maxmemory-policy`), and
the URL's, whose `?ttl=SECONDS` lets entries expire.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import pyarrow as pa

from tokzip_core.cache.index import key_words
from tokzip_core.cache.layer import CacheError, CacheLayer, binary_array, flat, key_bytes

PREFIX = b"tokzip:2:"
_SUM = 8  # bytes of checksum before a value
_AT_ONCE = 256  # keys of a command, several of which travel together
_SECONDS = 2.0  # to connect, and to answer


class RedisLayer(CacheLayer):
    """`redis://[user:password@]host:port/db`, also `rediss` and `unix`. Connects when first used, not before."""

    name = "redis"

    def __init__(self, url: str, seconds: float = _SECONDS) -> None:
        """seconds: the time-out of connecting and of one answer. Raises CacheError for a URL that is none of Redis."""
        super().__init__()
        try:
            import redis
        except ImportError as error:
            raise CacheError("a redis layer needs the package redis: pip install 'tokzip[redis]'") from error
        self._errors: Any = redis.exceptions
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        bare = url.partition("?")[0]  # urlunsplit would make unix:/ of unix:///
        try:
            self.ttl = int(query.pop("ttl")) if "ttl" in query else None
            if self.ttl is not None and self.ttl < 1:
                raise ValueError("a ttl is a number of seconds, at least 1")
            self._client: Any = redis.Redis.from_url(
                bare + "?" * bool(query) + urlencode(query),
                socket_timeout=seconds,
                socket_connect_timeout=seconds,
            )
        except ValueError as error:
            raise CacheError(f"redis cache at {parts.hostname}: {error}") from error

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        words, names = key_words(keys), [PREFIX + key for key in key_bytes(keys)]
        pipeline = self._client.pipeline(transaction=False)
        for at in range(0, len(names), _AT_ONCE):
            pipeline.mget(names[at : at + _AT_ONCE])
        stored: list[bytes | None] = [entry for part in self._sent(pipeline) for entry in part]
        there = np.array([entry is not None for entry in stored], np.bool_)
        good = np.array([entry is not None and len(entry) >= _SUM for entry in stored], np.bool_)
        sound = [entry for entry, ok in zip(stored, good.tolist(), strict=True) if ok and entry]
        good[good] = _sums(words[good], [entry[_SUM:] for entry in sound]) == [
            int.from_bytes(entry[:_SUM], "little") for entry in sound
        ]
        corrupt = np.flatnonzero(there & ~good).tolist()
        if corrupt:
            self._client.delete(*(names[i] for i in corrupt))
        self._count(hits=good.sum(), misses=(~good).sum(), corrupt=len(corrupt))
        kept = zip(stored, good.tolist(), strict=True)
        return binary_array([memoryview(e)[_SUM:] if ok and e is not None else None for e, ok in kept])

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        stored = values.to_pylist()
        sums = _sums(key_words(keys), stored).astype("<u8").tobytes()
        names = [PREFIX + key for key in key_bytes(keys)]
        entries = {n: sums[_SUM * i : _SUM * (i + 1)] + v for i, (n, v) in enumerate(zip(names, stored, strict=True))}
        pipeline = self._client.pipeline(transaction=False)
        if self.ttl is not None:
            for name, entry in entries.items():
                pipeline.set(name, entry, ex=self.ttl)
        else:
            names = list(entries)
            for at in range(0, len(names), _AT_ONCE):
                pipeline.mset({name: entries[name] for name in names[at : at + _AT_ONCE]})
        try:
            self._sent(pipeline)
        except self._errors.OutOfMemoryError:  # full, and told not to evict: what it holds can still be had
            self._count(refused=len(entries))
        else:
            self._count(puts=len(entries))

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for key in key_bytes(keys):
            pipeline.delete(PREFIX + key)
        self._sent(pipeline)

    def _sent(self, pipeline: Any) -> Any:
        try:
            return pipeline.execute()
        except self._errors.OutOfMemoryError:
            raise
        except self._errors.RedisError as error:
            raise CacheError(f"redis cache: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        self._client.close()


def _sums(words: Any, values: list[bytes]) -> Any:
    from tokzip_core.kernels import entries

    data, starts, ends = flat(binary_array(values))
    sums = np.empty(len(values), np.uint64)
    entries.checksums(words, data, starts, ends, sums)
    return sums
