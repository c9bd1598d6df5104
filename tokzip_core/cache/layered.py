"""A stack of layers used as one. Imports layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokzip_core.cache.layer import CacheLayer


class LayeredCache(CacheLayer):
    """Looks a key up layer by layer, and copies what a lower layer had into those above it.

    Layers of one kind are told apart by a number: "disk", "disk2".
    """

    name = "layered"

    def __init__(self, layers: Sequence[CacheLayer]) -> None:
        super().__init__()
        self.layers = list(layers)
        kinds = [layer.name for layer in self.layers]
        self.names = [k if not (n := kinds[:i].count(k)) else f"{k}{n + 1}" for i, k in enumerate(kinds)]

    def lookup(self, keys: pa.FixedSizeBinaryArray) -> tuple[pa.BinaryArray, dict[str, int]]:
        """What `get_many` gives, and the number of hits in each layer by name."""
        values = pa.nulls(len(keys), pa.binary())
        hits = dict.fromkeys(self.names, 0)
        wanted, missing = keys, np.arange(len(keys))
        for depth, layer in enumerate(self.layers):
            if not len(missing):
                break
            got = layer.get_many(wanted)
            found = np.asarray(pc.is_valid(got))
            hits[self.names[depth]] = int(found.sum())
            if found.any():
                had, good = wanted.filter(pa.array(found)), got.drop_null()
                for upper in self.layers[:depth]:
                    upper.put_many(had, good)
                if len(missing) == len(keys):
                    values = got
                else:
                    mask = np.zeros(len(keys), np.bool_)
                    mask[missing[found]] = True
                    values = pc.replace_with_mask(values, pa.array(mask), good)
                missing = missing[~found]
                wanted = keys.take(pa.array(missing))
        self.counters["hits"] += len(keys) - len(missing)
        self.counters["misses"] += len(missing)
        return values, hits

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        return self.lookup(keys)[0]

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        for layer in self.layers:
            layer.put_many(keys, values)
        self.counters["puts"] += len(keys)

    def close(self) -> None:
        for layer in self.layers:
            layer.close()
