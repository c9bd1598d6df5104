"""A stack of layers used as one. Imports layer, guarded and memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokzip_core.cache.guarded import GuardedLayer
from tokzip_core.cache.index import Places, key_words
from tokzip_core.cache.layer import CacheLayer
from tokzip_core.cache.memory import MemoryLayer

# Of each layer's counters, those that say what went otherwise than planned.
_EVENTS = ("evicted", "refused", "corrupt", "failed")


class LayeredCache(CacheLayer):
    """Looks a key up layer by layer, and copies what a lower layer had into those above it.

    No layer can make a call fail: each but memory is a `GuardedLayer`. Layers of one kind are told apart by a number:
    "disk", "disk2".
    """

    name = "layered"

    def __init__(self, layers: Sequence[CacheLayer]) -> None:
        super().__init__()
        safe = (MemoryLayer, GuardedLayer)
        self.layers = [layer if isinstance(layer, safe) else GuardedLayer(layer) for layer in layers]
        kinds = [layer.name for layer in self.layers]
        self.names = [k if not (n := kinds[:i].count(k)) else f"{k}{n + 1}" for i, k in enumerate(kinds)]
        self._told: dict[str, int] = {}
        self._lock = threading.Lock()

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> tuple[pa.BinaryArray, dict[str, int]]:
        """What `get_many` gives, and the number of hits in each layer by name."""
        values, depths = self.find(keys)
        return values, self.hits(depths)

    def hits(self, depths: Places) -> dict[str, int]:
        """How many of `depths`, as `find` gives them, each layer has, by name."""
        return {name: int((depths == depth).sum()) for depth, name in enumerate(self.names)}

    def find(self, keys: pa.FixedSizeBinaryArray) -> tuple[pa.BinaryArray, Places]:
        """What `get_many` gives, and the number of the layer that each value is from, or -1 (int64 `[keys]`)."""
        key_words(keys)
        values = pa.nulls(len(keys), pa.binary())
        depths = np.full(len(keys), -1)
        wanted, missing = keys, np.arange(len(keys))
        for depth, layer in enumerate(self.layers):
            if not len(missing):
                break
            got = layer.get_many(wanted)
            found = np.asarray(pc.is_valid(got))
            depths[missing[found]] = depth
            if depth and found.any():
                had, good = wanted.filter(pa.array(found)), got.drop_null()
                for upper in self.layers[:depth]:
                    upper.put_many(had, good)
            if len(missing) == len(keys):
                values = got
            elif found.any():
                mask = np.zeros(len(keys), np.bool_)
                mask[missing[found]] = True
                values = pc.replace_with_mask(values, pa.array(mask), good)
            if found.any():
                missing = missing[~found]
                wanted = keys.take(pa.array(missing))
        self._count(hits=len(keys) - len(missing), misses=len(missing))
        return values, depths

    def refuse(self, keys: pa.FixedSizeBinaryArray, depths: Places) -> None:
        """What `find` gave for these keys, from these layers, is of no use: forget it, and count it as `corrupt`."""
        self.discard_many(keys)
        for layer, count in zip(self.layers, self.hits(depths).values(), strict=True):
            layer._count(hits=-count, misses=count, corrupt=count)
        self._count(hits=-len(keys), misses=len(keys))

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:
        for layer in self.layers:
            layer.discard_many(keys)

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        return self.lookup(keys)[0]

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        key_words(keys)
        for layer in self.layers:
            layer.put_many(keys, values)
        self._count(puts=len(keys))

    def events(self) -> dict[str, int]:
        """What has happened since the last call, as `failed.redis` and the like, and how often; not what never did."""
        with self._lock:
            now = {f"{e}.{n}": x.counters[e] for n, x in zip(self.names, self.layers, strict=True) for e in _EVENTS}
            new = {name: count - self._told.get(name, 0) for name, count in now.items()}
            self._told = now
        return {name: count for name, count in new.items() if count}

    def flush(self) -> None:
        for layer in self.layers:
            layer.flush()

    def close(self) -> None:
        for layer in self.layers:
            layer.close()
