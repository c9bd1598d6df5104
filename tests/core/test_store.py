"""tz.TokenStore: a list of rows, compressed. What it returns, where it reads from, what it holds, who may share it."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from books import mutations
from hypothesis import given, settings
from hypothesis import strategies as st

import tokzip_core as tz

LISTS = pa.list_(pa.int32())
ROW = st.lists(st.integers(0, 40) | st.integers(0, 2**31 - 1), max_size=12)
ROWS = st.lists(st.none() | ROW, max_size=12)


def rows(values: Any) -> pa.Array:
    return pa.array(values, LISTS)


def store_of(values: Any, codec: str = "huffman", checksum: bool = False) -> tz.TokenStore:
    codebook = tz.train(rows(values), codec)
    return tz.TokenStore(tz.encode(rows(values), codebook, checksum), codebook)


def text(seed: int, n: int = 300) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [None if rng.random() < 0.02 else (rng.zipf(1.3, rng.integers(0, 60)) % 30_000).tolist() for _ in range(n)]


def write(path: Path, values: Any, codebook: tz.Codebook, checksum: bool = False, **others: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"tokens": tz.encode(rows(values), codebook, checksum), **others})
    with pq.ParquetWriter(path, table.schema, **tz.parquet_options(table.schema)) as writer:
        writer.write_table(table, row_group_size=50)
        writer.add_key_value_metadata(tz.codebook_metadata(codebook))


def listed(row: Any) -> Any:
    assert row is None or (row.dtype == np.int32 and row.ndim == 1)
    return None if row is None else row.tolist()


@settings(deadline=None)
@given(ROWS, st.data())
def test_it_is_a_list(values: Any, data: st.DataObject) -> None:
    store = store_of(values, data.draw(st.sampled_from(tz.codecs())), data.draw(st.booleans()))
    n = len(values)
    assert len(store) == n
    assert [listed(store[i]) for i in range(-n, n)] == values + values
    assert [listed(row) for row in store] == values
    for i in (n, -n - 1):
        with pytest.raises(IndexError, match=f"row {i} of a store of {n}"):
            store[i]
        with pytest.raises(IndexError, match=f"row {i} of a store of {n}"):
            store[[i]]
    part = data.draw(st.slices(n))
    assert store[part].to_pylist() == values[part]
    asked = data.draw(st.lists(st.integers(-n, n - 1), max_size=20)) if n else []
    expected = [values[i] for i in asked]
    for index in (asked, np.array(asked, np.int64), np.array(asked, np.int16)):
        assert store[index].equals(rows(expected))
        assert [listed(row) for row in store.__getitems__(index)] == expected


@pytest.mark.parametrize("codec", tz.codecs())
def test_every_codec(codec: str) -> None:
    values = text(1)
    store = store_of(values, codec)
    store[:].validate(full=True)
    assert store[:].to_pylist() == values
    assert store[::-7].to_pylist() == values[::-7]
    order = np.random.default_rng(2).integers(0, len(values), 500)
    assert store[order].to_pylist() == [values[i] for i in order]
    assert [listed(store[np.int64(i)]) for i in order[:100]] == [values[i] for i in order[:100]]


@pytest.mark.parametrize("index", [1.5, "1", None, [0.5], [[0]], ["a"], np.array([True, False])])
def test_what_is_no_index(index: Any) -> None:
    with pytest.raises(TypeError, match="rows are asked for by integers"):
        store_of([[1], [2]])[index]


def test_rows_belong_to_who_asked() -> None:
    store = store_of([[1, 2], [3]])
    store[0][:] = 7
    assert store[0].tolist() == [1, 2]


def test_batches() -> None:
    values = [[i] * (i % 5) for i in range(103)]
    store = store_of(values)
    assert [row for batch in store.batches(10) for row in batch.to_pylist()] == values
    one, two = ([b.to_pylist() for b in store.batches(10, np.random.default_rng(seed))] for seed in (3, 3))
    assert one == two
    assert [len(batch) for batch in one] == [10] * 10 + [3]
    shuffled = [row for batch in one for row in batch]
    assert shuffled != values
    assert sorted(shuffled) == sorted(values)
    assert list(store_of([]).batches(3)) == []
    with pytest.raises(ValueError, match="batches of 0"):
        next(store.batches(0))


@pytest.mark.parametrize("checksum", [False, True])
def test_what_it_holds(checksum: bool) -> None:
    values = text(4, 2_000)
    full = [row for row in values if row is not None]
    codebook = tz.train(rows(values))
    size = sum(len(blob.as_py()) for blob in tz.encode(rows(full), codebook).storage)
    for kept, bits in ((values, 2_000 // 8), (full, 0)):
        store = tz.TokenStore(tz.encode(rows(kept), codebook, checksum), codebook)
        assert store.nbytes == size + 16 + 4 * (len(kept) + 1) + bits  # checksums were verified, and left out
        assert len(pickle.dumps(store)) < store.nbytes + len(codebook.to_bytes()) + 1_000


def test_bare_storage_chunks_and_slices() -> None:
    values = text(5)
    codebook = tz.train(rows(values))
    blobs, checked = tz.encode(rows(values), codebook), tz.encode(rows(values), codebook, checksum=True)
    chunks = pa.chunked_array([blobs[:100], blobs[100:100], blobs[100:]])
    for column in (blobs, blobs.storage, blobs.storage.cast(pa.large_binary()), chunks, checked):
        assert tz.TokenStore(column, codebook)[:].to_pylist() == values
    assert tz.TokenStore(checked.storage, codebook, checksum=True)[:].to_pylist() == values
    assert tz.TokenStore(chunks.slice(90, 20), codebook)[:].to_pylist() == values[90:110]
    assert len(tz.TokenStore(chunks.slice(0, 0), codebook)) == 0
    hidden = pa.Array.from_buffers(  # bytes under a null row
        pa.binary(), 2, [pa.py_buffer(b"\x02"), pa.py_buffer(np.array([0, 2, 3], np.int32)), pa.py_buffer(b"xx\1")]
    )
    raw = tz.train(rows([[1]]), "raw")
    assert [listed(row) for row in tz.TokenStore(hidden, raw)] == [None, [1]]
    with pytest.raises(tz.UnknownCodebookError):
        tz.TokenStore(blobs, raw)


def test_more_than_4_gib_need_wider_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(text(6))
    monkeypatch.setattr("tokzip_core.store._NARROW", 1_000)
    wide = store_of(text(6))
    assert (store._offsets.dtype, wide._offsets.dtype) == (np.uint32, np.uint64)
    assert wide[:].equals(store[:])
    assert listed(wide[7]) == listed(store[7])


@pytest.mark.parametrize("checksum", [False, True])
def test_files_and_folders(tmp_path: Path, checksum: bool) -> None:
    first, second = text(7), text(8)
    codebook = tz.train(rows(first))
    write(tmp_path / "a" / "x.parquet", first, codebook, checksum, n=pa.array(range(len(first))))
    write(tmp_path / "b.parquet", second, codebook)
    assert tz.TokenStore.open(tmp_path / "b.parquet")[:].to_pylist() == second
    for source in (tmp_path, str(tmp_path), tmp_path.as_uri(), [tmp_path / "a", (tmp_path / "b.parquet").as_uri()]):
        assert tz.TokenStore.open(source)[:].to_pylist() == first + second
    both = tz.TokenStore.open([tmp_path / "b.parquet", tmp_path / "a" / "x.parquet"])
    assert both[:].to_pylist() == second + first
    assert both.codebook == codebook
    assert f"{len(both):,} rows" in repr(both)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    one, two = tz.train(rows([[1]])), tz.train(rows([[2]]))
    write(tmp_path / "a.parquet", [[1]], one, n=pa.array([1]))
    write(tmp_path / "b.parquet", [[1]], two)
    with pytest.raises(tz.TokzipError, match=rf"a\.parquet needs {one.id}.*b\.parquet {two.id}"):
        tz.TokenStore.open(tmp_path)
    with pytest.raises(tz.TokzipError, match=r"a\.parquet: column 'n' is int64, expected token blobs"):
        tz.TokenStore.open(tmp_path / "a.parquet", column="n")
    with pytest.raises(tz.TokzipError, match="'m' is missing"):
        tz.TokenStore.open(tmp_path / "a.parquet", "m")
    for nothing in ([], tmp_path / "c.parquet"):
        with pytest.raises(FileNotFoundError):
            tz.TokenStore.open(nothing)


@pytest.mark.parametrize("codec", tz.codecs())
def test_a_bad_blob_is_named(codec: str) -> None:
    """Whatever the bytes, a row is refused by its number in the store, and the others can be read."""
    values = [row for row in text(9) if row]
    codebook = tz.train(rows(values), codec)
    blobs = tz.encode(rows(values), codebook).storage.to_pylist()
    refused = 0
    for i, blob in enumerate(mutations(blobs, np.random.default_rng(1), 200)):
        row = i % len(values)
        store = tz.TokenStore(pa.array([*blobs[:row], blob, *blobs[row + 1 :]], pa.binary()), codebook)
        rest = [r for r in range(len(values)) if r != row][::-1]
        assert store[rest[:50]].to_pylist() == [values[r] for r in rest[:50]]
        fault = None
        try:
            store[row]
        except tz.CorruptBlobError as error:
            fault = str(error)
        if fault is None:
            continue
        refused += 1
        assert fault.startswith(f"row {row} is not a blob of this codebook: ")
        for ask in (slice(None), [row, 0], [0, -1, row]):
            for get in (store.__getitem__, store.__getitems__):
                with pytest.raises(tz.CorruptBlobError, match=f"^{fault}$"):
                    get(ask)
    assert refused > 0


def test_a_bad_checksum_is_found_when_the_store_is_made(tmp_path: Path) -> None:
    values = [[1, 2, 3]] * 80
    codebook = tz.train(rows(values))
    blobs = tz.encode(rows(values), codebook, checksum=True)
    damaged = blobs.storage.to_pylist()
    damaged[70] = bytes([damaged[70][0] ^ 1]) + damaged[70][1:]
    bad = pa.ExtensionArray.from_storage(blobs.type, pa.array(damaged, pa.binary()))
    with pytest.raises(tz.CorruptBlobError, match="row 70 is damaged"):
        tz.TokenStore(pa.chunked_array([bad[:60], bad[60:]]), codebook)
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("tokens", blobs.type)])) as writer:
        for part in (bad[:60], bad[60:]):
            writer.write_table(pa.table({"tokens": part}))
        writer.add_key_value_metadata(tz.codebook_metadata(codebook))
    with pytest.raises(tz.CorruptBlobError, match=r"a\.parquet: row 70 is damaged"):
        tz.TokenStore.open(tmp_path / "a.parquet")


def test_threads_share_a_store() -> None:
    values = text(10)
    store = store_of(values)

    def work(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, len(values), 400)
        return store[order].to_pylist() == [values[i] for i in order] == [listed(store[i]) for i in order]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_a_pickled_store() -> None:
    values = text(11)
    store = pickle.loads(pickle.dumps(store_of(values)))
    assert store[:].to_pylist() == values
    assert not store._data.flags.writeable  # the kernels are compiled for arrays that are read only


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_torch_data_loader(start: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    values = [[i] * (i % 9) for i in range(200)]
    loader = torch_data.DataLoader(
        store_of(values), batch_size=16, shuffle=True, num_workers=2, multiprocessing_context=start, collate_fn=list
    )
    for _ in range(2):  # epochs
        batches = [[listed(row) for row in batch] for batch in loader]
        assert [len(batch) for batch in batches] == [16] * 12 + [8]
        seen = [row for batch in batches for row in batch]
        assert seen != values
        assert sorted(seen) == sorted(values)


def test_what_is_no_row_number() -> None:
    codebook = tz.train(pa.array([[1, 2], [3]]))
    store = tz.TokenStore(tz.encode(pa.array([[1, 2], [3]]), codebook), codebook)
    with pytest.raises(IndexError):
        store[np.array([2**64 - 1], np.uint64)]
    with pytest.raises(TypeError):
        store[True]
