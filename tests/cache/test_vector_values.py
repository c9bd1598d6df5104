"""Vectors as values: exact where it is promised, near where it is not, and never wrong for damaged bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from cache_entries import MB, keys

from tokzip_core.cache import CODINGS, CacheError, LayeredCache, MemoryLayer, VectorCache, parse_cache_spec
from tokzip_core.cache.index import KeyIndex
from tokzip_core.cache.layer import binary_array
from tokzip_core.cache.values import ValueCoding
from tokzip_core.cache.vectors import fidelity
from tokzip_core.kernels.entries import checksums

EXACT = ("float32", "lossless")


def vectors(rows: int, dimension: int = 384, seed: int = 0) -> np.ndarray:
    """Normally distributed and of length 1, as a sentence model's."""
    made = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def odd_vectors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    normal = vectors(40, 64)
    scattered = normal.copy()
    scattered[rng.random(scattered.shape) < 0.3] = 0
    return {
        "zeros": np.zeros((3, 64), np.float32),
        "some zeros": scattered,
        "minus zero": -np.zeros((2, 64), np.float32),
        "any bits": rng.integers(0, 2**32, (50, 64), dtype=np.uint32).view(np.float32),
        "any exponent": np.ldexp(normal, rng.integers(-140, 120, normal.shape)).astype(np.float32),
        "subnormal": normal * np.float32(1e-40),
        "large": normal * np.float32(1e30),
        "one outlier": np.where(np.arange(64) == 5, normal * 1e6, normal).astype(np.float32),
        "not finite": np.where(rng.random(normal.shape) < 0.1, np.float32("nan"), normal),
        "infinite": np.where(rng.random(normal.shape) < 0.1, -np.float32("inf"), normal),
        "one dimension": vectors(20, 1),
        "no row": np.zeros((0, 64), np.float32),
        "constant": np.full((4, 64), 0.125, np.float32),
        "long": vectors(2, 40_000),
        "long, of any bits": rng.integers(0, 2**32, (2, 40_000), dtype=np.uint32).view(np.float32),
    }


@pytest.mark.parametrize("name", odd_vectors())
@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_exact_has_the_same_bits_and_what_is_not_is_near(coding: str, name: str) -> None:
    given = odd_vectors()[name]
    code = ValueCoding(coding)
    got, good = code.decode(code.encode(given), given.shape[1])
    assert good.all()
    if coding in EXACT or not np.isfinite(given).all():
        finite = np.isfinite(given).all(1)
        same = (got.view(np.uint32) == given.view(np.uint32)).all(1)
        assert same[~finite].all()
        assert coding not in EXACT or same.all()
    elif coding == "fp16":
        fits = np.abs(given).max(1, initial=0) < 65504
        with np.errstate(over="ignore"):
            expected = np.where(fits[:, None], given.astype(np.float16).astype(np.float32), given)
        assert np.array_equal(got, expected)
        assert np.array_equal(np.signbit(got), np.signbit(expected))
    else:
        scale = np.abs(given).max(1, initial=0, keepdims=True) / 127
        assert (np.abs(got - given) <= scale * 0.505).all()


def test_sizes_of_normal_vectors() -> None:
    given = vectors(2000)
    size = {c: ValueCoding(c).encode(given).nbytes / 2000 - 4 for c in CODINGS}
    assert size["float32"] == pytest.approx(1 + 4 * 384)
    assert size["lossless"] < 1290
    assert size["fp16"] < 670
    assert size["int8"] < 375


@pytest.mark.parametrize("coding", ["lossless", "fp16", "int8"])
def test_slices_and_nulls(coding: str) -> None:
    given, code = vectors(30, 48), ValueCoding(coding)
    values = code.encode(given)
    expected, _ = code.decode(values, 48)
    column = pa.concat_arrays([values[20:25], pa.nulls(2, pa.binary()), values[:3]])[2:]
    got, good = code.decode(column, 48)
    assert good.tolist() == [True] * 3 + [False] * 2 + [True] * 3
    assert np.array_equal(got[good], expected[[22, 23, 24, 0, 1, 2]])


@pytest.mark.parametrize("coding", CODINGS)
def test_another_dimension_or_coding_is_not_good(coding: str) -> None:
    values = ValueCoding(coding).encode(vectors(5, 64))
    for dimension in (32, 63, 65, 128):
        assert not ValueCoding(coding).decode(values, dimension)[1].any()
    for other in set(CODINGS) - {coding, "float32"}:
        assert ValueCoding(other).decode(values, 64)[1].any() == (coding == "float32")


@pytest.mark.parametrize("coding", CODINGS)
def test_any_bytes_are_decoded_to_something_or_refused(coding: str) -> None:
    rng = np.random.default_rng(2)
    code = ValueCoding(coding)
    whole = [v.as_py() for v in code.encode(vectors(20, 40))]
    damaged: list[bytes | None] = [rng.bytes(int(rng.integers(0, 300))) for _ in range(300)]
    for _ in range(2000):
        value = bytearray(whole[rng.integers(0, 20)])
        for _ in range(int(rng.integers(1, 4))):
            value[rng.integers(0, len(value))] = rng.integers(0, 256)
        damaged.append(bytes(value[: rng.integers(0, len(value) + 1)] if rng.random() < 0.3 else value))
    for start in range(0, len(damaged), 100):
        some = binary_array(damaged[start : start + 100])
        got, good = code.decode(some, 40)
        assert got.shape == (len(some), 40)
        assert good.shape == (len(some),)


def test_an_unknown_coding_is_an_error() -> None:
    with pytest.raises(CacheError, match="float32, lossless, fp16, int8"):
        ValueCoding("int4")


@pytest.mark.parametrize("coding", CODINGS)
def test_a_vector_cache_gives_the_same_now_and_later(coding: str) -> None:
    cache = VectorCache(LayeredCache([MemoryLayer(10 * MB)]), coding)
    given = vectors(100)
    now, stats = cache.put(keys(*range(100)), given)
    got, found, hits = cache.lookup(keys(*range(50, 150)), 384)
    assert found.tolist() == [True] * 50 + [False] * 50
    assert np.array_equal(got[:50], now[50:])
    assert hits == {"memory": 50}
    assert np.array_equal(now, given) == (coding in EXACT)
    assert stats["cache_values"] == 100
    assert stats["cache_value_bytes"] == sum(len(v.as_py()) for v in cache.coding.encode(given))
    assert ("cache_cosine" in stats) == (coding not in EXACT)


def test_codings_never_read_each_others_values() -> None:
    layers = LayeredCache([MemoryLayer(10 * MB)])
    caches = [VectorCache(layers, coding) for coding in CODINGS]
    for writer in caches:
        for reader in caches:
            assert not reader.lookup(keys(1, 2), 384)[1].any()
        stored, _ = writer.put(keys(1, 2), vectors(2))
        assert np.array_equal(writer.lookup(keys(1, 2), 384)[0], stored)
        layers.layers[0].close()


@pytest.mark.parametrize("kind", ["memory:1MB", "disk:{}:4MB", "folder:{}"])
def test_what_is_no_vector_is_a_miss_counted_and_replaced(tmp_path: Path, kind: str) -> None:
    layers = parse_cache_spec(kind.replace("{}", str(tmp_path))).open()
    cache, name = VectorCache(layers), kind.partition(":")[0]
    cache.put(keys(1), vectors(1))
    layers.put_many(cache._own(keys(2)), pa.array([b"no vector"], pa.binary()))
    cache.flush()
    _, found, hits = cache.lookup(keys(1, 2), 384)
    assert (found.tolist(), hits) == ([True, False], {name: 1})
    assert cache.events() == {f"cache_corrupt.{name}": 1}
    assert layers.counters["hits"] == layers.layers[0].counters["hits"] == 1
    cache.put(keys(2), vectors(1))
    assert cache.lookup(keys(1, 2), 384)[2] == {name: 2}
    cache.close()


def test_fidelity_counts_what_coding_loses() -> None:
    given = vectors(200)
    exact = fidelity(given, given)
    assert exact["cache_cosine"] == pytest.approx(200, abs=1e-3)
    assert exact["cache_neighbours_kept"] == exact["cache_neighbours"] == 2000
    coarse = fidelity(given, np.sign(given))
    assert coarse["cache_cosine"] == pytest.approx(200 * np.sqrt(2 / np.pi), rel=0.01)
    assert 0 < coarse["cache_neighbours_kept"] < 2000


def test_checksums_are_xxh64() -> None:
    rng = np.random.default_rng(3)
    data = rng.integers(0, 256, 4000, dtype=np.uint8)
    words = rng.integers(0, 2**64, (300, 4), dtype=np.uint64)
    starts = rng.integers(0, 2000, 300)
    ends = starts + np.arange(300)
    sums = np.empty(300, np.uint64)
    checksums(words, data, starts, ends, sums)
    assert sums.tolist() == [
        xxhash.xxh64_intdigest(data[a:b].tobytes(), int(w)) for a, b, w in zip(starts, ends, words[:, 3], strict=True)
    ]


def test_an_index_finds_what_was_added_and_not_what_was_removed() -> None:
    rng = np.random.default_rng(4)
    words = rng.integers(0, 2**64, (20_000, 4), dtype=np.uint64)
    index, expected = KeyIndex(), np.full(20_000, -1)
    for step in range(60):
        some = np.sort(rng.choice(20_000, 500, replace=False))
        if step % 5 == 4:
            index.drop(step - 2)
            expected[expected == step - 2] = -1
        elif step % 7 == 6:
            index.remove(words[some])
            expected[some] = -1
        else:
            index.add(words[some], step, 0)
            expected[some] = step
        assert np.array_equal(index.find(words)[0], expected)
