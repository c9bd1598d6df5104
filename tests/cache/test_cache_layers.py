"""The cache layers: what is put comes back, bounds hold, damage is a miss."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tokzip_core.cache import CacheError, CacheLayer, LayeredCache, MemoryLayer
from tokzip_core.cache.disk import DiskLayer
from tokzip_core.cache.memory import ENTRY_OVERHEAD

MB = 1 << 20


def keys(*numbers: int) -> pa.FixedSizeBinaryArray:
    """Keys scattered like digests."""
    return pa.array([random.Random(n).randbytes(32) for n in numbers], pa.binary(32))


def values(*numbers: int, size: int = 1536) -> pa.BinaryArray:
    return pa.array([random.Random(-n - 1).randbytes(size) for n in numbers], pa.binary())


@pytest.fixture(params=["memory", "disk", "layered"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CacheLayer]:
    kinds = {
        "memory": lambda: MemoryLayer(MB),
        "disk": lambda: DiskLayer(str(tmp_path / "c"), 4 * MB),
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


def test_no_keys_and_empty_values(layer: CacheLayer) -> None:
    assert len(layer.get_many(keys())) == 0
    layer.put_many(keys(), values())
    layer.put_many(keys(1), pa.array([b""], pa.binary()))
    assert layer.get_many(keys(1, 2)).to_pylist() == [b"", None]


def test_slices_are_read_from_where_they_start(layer: CacheLayer) -> None:
    layer.put_many(keys(0, 1, 2, 3)[1:3], values(0, 1, 2, 3)[1:3])
    assert layer.get_many(keys(9, 0, 1, 2, 3)[1:]).to_pylist() == [
        None,
        *values(1, 2).to_pylist(),
        None,
    ]


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


def test_disk_survives_reopening(tmp_path: Path) -> None:
    first = DiskLayer(str(tmp_path), 4 * MB)
    first.put_many(keys(*range(100)), values(*range(100)))
    first.close()
    again = DiskLayer(str(tmp_path), 4 * MB)
    assert again.get_many(keys(*range(100))).equals(values(*range(100)))
    again.close()


@pytest.mark.parametrize("size", [400, 1536, 3072, 9000])
def test_disk_bound_holds_and_the_oldest_go_first(tmp_path: Path, size: int) -> None:
    bound = MB
    layer = DiskLayer(str(tmp_path), bound)
    total = 3 * bound // (size + 96)
    for start in range(0, total, 50):
        numbers = range(start, start + 50)
        layer.put_many(keys(*numbers), values(*numbers, size=size))
        assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= bound
    there = layer.get_many(keys(*range(start + 50))).is_valid().to_numpy(zero_copy_only=False)
    assert layer.counters["failed"] == 0
    assert layer.counters["evicted"] > 0
    assert there.sum() * (size + 96) > bound / 4  # 96: keys and page headers
    first = there.argmax()
    assert there[first:].all(), "the newest are kept"
    assert first == layer.counters["evicted"]
    layer.close()


def test_disk_file_over_the_bound_is_an_error(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), 4 * MB)
    layer.put_many(keys(*range(1000)), values(*range(1000)))
    layer.close()
    with pytest.raises(CacheError, match="exceed the bound"):
        DiskLayer(str(tmp_path), MB)


def test_damaged_values_are_misses_counted_and_replaced(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), 4 * MB)
    layer.put_many(keys(*range(20)), values(*range(20)))
    layer.close()
    file = tmp_path / "data.mdb"
    data = bytearray(file.read_bytes())
    for n in (3, 11):  # every copy that LMDB has left in the file
        value, at = values(n)[0].as_py(), -1
        while (at := data.find(value, at + 1)) >= 0:
            data[at + 700] ^= 1
    file.write_bytes(data)
    layer = DiskLayer(str(tmp_path), 4 * MB)
    got = layer.get_many(keys(*range(20)))
    assert got.is_null().to_pylist() == [n in (3, 11) for n in range(20)]
    assert layer.counters["corrupt"] == 2
    layer.put_many(keys(3, 11), values(3, 11))
    assert layer.get_many(keys(*range(20))).equals(values(*range(20)))
    layer.close()


def _fill(path: str, start: int) -> None:
    layer = DiskLayer(path, 8 * MB)
    for n in range(start, start + 200, 20):
        numbers = range(n, n + 20)
        layer.put_many(keys(*numbers), values(*numbers))
        if not layer.get_many(keys(*numbers)).equals(values(*numbers)):
            os._exit(3)
    layer.close()


def test_two_processes_share_a_disk_cache(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(str(tmp_path), n)) for n in (0, 100)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0]
    layer = DiskLayer(str(tmp_path), 8 * MB)
    assert layer.get_many(keys(*range(300))).equals(values(*range(300)))
    layer.close()


def test_a_forked_child_opens_the_cache_anew(tmp_path: Path) -> None:
    layer = DiskLayer(str(tmp_path), 4 * MB)
    layer.put_many(keys(1), values(1))
    child = os.fork()
    if child == 0:
        ok = layer.get_many(keys(1)).equals(values(1))
        layer.put_many(keys(2), values(2))
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert layer.get_many(keys(1, 2)).equals(values(1, 2))
    layer.close()


def test_two_layers_of_one_folder_share_it_until_the_last_is_closed(tmp_path: Path) -> None:
    first, second = (DiskLayer(str(tmp_path), 4 * MB) for _ in range(2))
    with pytest.raises(CacheError, match="already open"):
        DiskLayer(str(tmp_path), 5 * MB)
    first.put_many(keys(1), values(1))
    first.close()
    assert second.get_many(keys(1)).equals(values(1))
    second.close()


def test_a_folder_that_cannot_be_one_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    with pytest.raises(CacheError, match="cannot be opened"):
        DiskLayer(str(file), MB)
    (tmp_path / "data.mdb").write_bytes(b"not LMDB" * 1000)
    with pytest.raises(CacheError, match="cannot be opened"):
        DiskLayer(str(tmp_path), MB)


def test_lower_hits_fill_the_layers_above(tmp_path: Path) -> None:
    memory, disk = MemoryLayer(MB), DiskLayer(str(tmp_path), 4 * MB)
    disk.put_many(keys(1, 2), values(1, 2))
    memory.put_many(keys(3), values(3))
    stack = LayeredCache([memory, disk])
    got, hits = stack.lookup(keys(2, 3, 4, 1))
    assert got.to_pylist() == [*values(2, 3).to_pylist(), None, values(1)[0].as_py()]
    assert hits == {"memory": 1, "disk": 2}
    assert stack.lookup(keys(1, 2, 3))[1] == {"memory": 3, "disk": 0}
    stack.close()


def test_no_layers_at_all_miss_everything() -> None:
    stack = LayeredCache([])
    stack.put_many(keys(1), values(1))
    got, hits = stack.lookup(keys(1, 2))
    assert (got.null_count, hits) == (2, {})
