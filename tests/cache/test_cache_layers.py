"""What every cache layer does: what is put comes back, in order, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cache_entries import MB, keys, values

from tokzip_core.cache import CacheError, CacheLayer, LayeredCache, MemoryLayer
from tokzip_core.cache.disk import DiskLayer
from tokzip_core.cache.folder import FolderLayer
from tokzip_core.cache.memory import ENTRY_OVERHEAD


@pytest.fixture(params=["memory", "disk", "folder", "redis", "layered"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheLayer]:
    def redis() -> CacheLayer:
        return request.getfixturevalue("redis_server").layer()

    kinds = {
        "memory": lambda: MemoryLayer(MB),
        "disk": lambda: DiskLayer(str(tmp_path / "c"), 4 * MB),
        "folder": lambda: FolderLayer(f"file://{tmp_path / 'f'}"),
        "redis": redis,
        "layered": lambda: LayeredCache([MemoryLayer(MB // 8), DiskLayer(str(tmp_path / "c"), 4 * MB)]),
    }
    layer = kinds[request.param]()
    yield layer
    layer.close()


def test_hits_and_misses_come_back_in_order(layer: CacheLayer) -> None:
    layer.put_many(keys(1, 2, 3), values(1, 2, 3))
    got = layer.get_many(keys(3, 9, 1, 3, 8, 2))
    assert got.equals(pa.array([values(n)[0].as_py() if n else None for n in (3, 0, 1, 3, 0, 2)], pa.binary()))
    assert (layer.counters["hits"], layer.counters["misses"]) == (4, 2)
    layer.flush()
    assert layer.get_many(keys(2, 1)).equals(values(2, 1))


def test_no_keys_and_empty_values(layer: CacheLayer) -> None:
    assert len(layer.get_many(keys())) == 0
    layer.put_many(keys(), values())
    layer.put_many(keys(1), pa.array([b""], pa.binary()))
    layer.flush()
    assert layer.get_many(keys(1, 2)).to_pylist() == [b"", None]


def test_slices_are_read_from_where_they_start(layer: CacheLayer) -> None:
    layer.put_many(keys(0, 1, 2, 3)[1:3], values(0, 1, 2, 3)[1:3])
    assert layer.get_many(keys(9, 0, 1, 2, 3)[1:]).to_pylist() == [None, *values(1, 2).to_pylist(), None]


def test_any_mix_of_lengths_and_hits_is_right(layer: CacheLayer) -> None:
    rng = np.random.default_rng(0)
    there = {n: values(n, size=int(rng.integers(0, 300)))[0].as_py() for n in range(0, 120, 2)}
    for at in range(0, 60, 7):
        some = list(there)[at : at + 7]
        layer.put_many(keys(*some), pa.array([there[n] for n in some], pa.binary()))
    layer.flush()
    for _ in range(20):
        asked = rng.integers(0, 120, 40).tolist()
        assert layer.get_many(keys(*asked)).to_pylist() == [there.get(n) for n in asked]


def test_keys_of_another_type_are_refused(layer: CacheLayer) -> None:
    with pytest.raises(CacheError, match="fixed_size_binary"):
        layer.get_many(pa.array([b"x" * 32], pa.binary()))
    with pytest.raises(CacheError, match="1 nulls"):
        layer.get_many(pa.array([None], pa.binary(32)))


def test_memory_evicts_the_least_recently_used() -> None:
    layer = MemoryLayer(3 * (100 + ENTRY_OVERHEAD))
    layer.put_many(keys(1, 2, 3), values(1, 2, 3, size=100))
    layer.get_many(keys(1))
    layer.put_many(keys(4), values(4, size=100))
    assert layer.get_many(keys(1, 2, 3, 4)).is_valid().to_pylist() == [True, False, True, True]
    assert layer.counters["evicted"] == 1


def test_memory_bound_holds_and_what_is_too_large_is_not_kept() -> None:
    layer = MemoryLayer(50_000)
    rng = np.random.default_rng(0)
    for n in range(200):
        layer.put_many(keys(n), values(n, size=int(rng.integers(0, 5000))))
        assert layer.size <= 50_000
    layer.put_many(keys(1000), values(1000, size=60_000))
    assert layer.get_many(keys(1000)).null_count == 1
    assert layer.get_many(keys(199)).null_count == 0
