"""The disk layer: an LMDB environment, kept between runs, shared by processes. Imports lmdb, xxhash.

Two tables: `values`, key -> XXH3-64 of the value (8 bytes, little-endian) + value; and `order`, a running
number -> key, by which the entries inserted first are evicted first. LMDB never grows its file beyond the map
size, so the file's bound is the map's; eviction keeps a quarter of the map free, because LMDB copies the
pages it changes. LMDB: https://www.symas.com/lmdb. XXH3: https://github.com/Cyan4973/xxHash.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import xxhash

from tokzip_core.cache.layer import CacheError, CacheLayer, key_bytes

# Anything longer is not ours: a damaged length field must not make us touch pages beyond the file.
MAX_VALUE_BYTES = 1 << 20
# Beside data.mdb lies lock.mdb, a table of readers; its size is fixed by their number.
MAX_READERS = 256
_LOCK_FILE_BYTES = 64 * (MAX_READERS + 2)
_FULL = 0.75
_HEAD = 8  # bytes of checksum before a value
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVICTED_A_PUT = 2  # at most, while the tables are over their share
_PAGES_CHANGED = 2 + _EVICTED_A_PUT  # by a put


class _Shared:
    """An environment of this process, and how many layers use it: LMDB allows a process one a file."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.users = 0
        file = Path(path) / "data.mdb"
        map_size = (max_bytes - _LOCK_FILE_BYTES) // _PAGE * _PAGE
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
            there = file.stat().st_size if file.exists() else 0
            if there > map_size:
                raise CacheError(
                    f"disk cache {path}: its {there} bytes exceed the bound of {max_bytes}; raise it or delete it"
                )
            # metasync off: a crash of the machine may lose the last transaction, never the integrity of the
            # rest.
            self.env = lmdb.open(path, map_size=map_size, max_dbs=2, max_readers=MAX_READERS, metasync=False)
            self.env.reader_check()
            self.values = self.env.open_db(b"values")
            self.order = self.env.open_db(b"order", integerkey=True)
        except (lmdb.Error, OSError) as error:
            raise CacheError(f"disk cache {path}: cannot be opened for reading and writing: {error}") from error


_open: dict[str, _Shared] = {}
_lock = threading.RLock()


def _forget_parents() -> None:
    """In a forked child: LMDB's handles are the parent's and must not be used here; open anew when needed."""
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it
    for shared in _open.values():
        shared.env.close()
    _open.clear()


os.register_at_fork(after_in_child=_forget_parents)


class DiskLayer(CacheLayer):
    """A folder with a bound on the bytes of its files. Damaged entries are misses, counted as `corrupt`.

    Opens on construction, so that a folder that cannot be used is an error before any work, and again in a
    forked child. Raises CacheError where the folder cannot be opened, is over its bound already, or is open
    in this process with another bound.
    """

    name = "disk"

    def __init__(self, path: str, max_bytes: int) -> None:
        super().__init__()
        self.path = os.path.realpath(path)
        self.max_bytes = max_bytes
        self._mine: _Shared | None = None
        self._environment()

    def _environment(self) -> _Shared:
        with _lock:
            shared = _open.get(self.path)
            if shared is None or shared is not self._mine:
                if shared is None:
                    shared = _open[self.path] = _Shared(self.path, self.max_bytes)
                if shared.max_bytes != self.max_bytes:
                    raise CacheError(
                        f"disk cache {self.path}: already open in this process with bound {shared.max_bytes}"
                    )
                shared.users += 1
                self._mine = shared
            return shared

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        wanted = key_bytes(keys)
        shared = self._environment()
        try:
            with shared.env.begin(db=shared.values, buffers=True) as txn:
                stored = list(map(txn.get, wanted))
                sound = [v for v in stored if v is not None and _HEAD <= len(v) <= MAX_VALUE_BYTES + _HEAD]
                lengths = np.array([0 if v is None else len(v) for v in stored], np.int64)
                data = b"".join(sound)  # the buffers end with the transaction
                del stored, sound
            result, corrupt = _checked(data, lengths)
        except lmdb.Error:  # its pages are damaged
            self.counters["failed"] += 1
            result, corrupt = pa.nulls(len(wanted), pa.binary()), 0
        self.counters["corrupt"] += corrupt
        self.counters["misses"] += result.null_count
        self.counters["hits"] += len(wanted) - result.null_count
        return result

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        shared = self._environment()
        entries = list(zip(key_bytes(keys), values.to_pylist(), strict=True))
        # LMDB copies the pages it changes: a transaction stays so small that the free quarter has room for its copies
        # and for those of the two before it, which are not free for use yet.
        limit, start, size = self.max_bytes // 32, 0, 0
        for i, (_, value) in enumerate(entries):
            size += len(value) + _PAGES_CHANGED * _PAGE
            if size >= limit or i == len(entries) - 1:
                try:
                    self._put(shared, entries[start : i + 1])
                except (
                    lmdb.Error
                ):  # the cache is full of what it cannot let go, or its disk is; a miss later is no loss
                    self.counters["failed"] += 1
                start, size = i + 1, 0

    def _put(self, shared: _Shared, entries: Sequence[tuple[bytes, bytes]]) -> None:
        puts = 0
        with shared.env.begin(write=True) as txn:
            last = txn.cursor(shared.order)
            number = int.from_bytes(last.key(), "little") + 1 if last.last() else 0
            for key, value in entries:
                if len(value) > min(MAX_VALUE_BYTES, self.max_bytes // 64):
                    continue
                data = xxhash.xxh3_64_intdigest(value).to_bytes(8, "little") + value
                if txn.put(key, data, db=shared.values, overwrite=False):
                    txn.put(number.to_bytes(8, "little"), key, db=shared.order, append=True)
                    number += 1
                    puts += 1
                elif txn.get(key, db=shared.values) != data:  # damaged: its place in the order stays
                    txn.put(key, data, db=shared.values)
            evicted = self._evict(shared, txn, _EVICTED_A_PUT * len(entries))
        self.counters["puts"] += puts
        self.counters["evicted"] += evicted

    def _evict(self, shared: _Shared, txn: Any, limit: int) -> int:
        """Delete what was inserted first until the tables fit, or `limit` entries; the number of entries deleted."""
        evicted = 0
        cursor = txn.cursor(shared.order)
        while evicted < limit and _bytes(txn, shared) > self.max_bytes * _FULL:
            if not cursor.first():
                break
            txn.delete(cursor.value(), db=shared.values)
            cursor.delete()
            evicted += 1
        return evicted

    def close(self) -> None:
        with _lock:
            shared, self._mine = self._mine, None
            if shared is None or _open.get(self.path) is not shared:
                return
            shared.users -= 1
            if not shared.users:
                shared.env.close()
                del _open[self.path]


def _bytes(txn: Any, shared: _Shared) -> int:
    stats = (txn.stat(shared.values), txn.stat(shared.order))
    return sum(int(s["psize"]) * (s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"]) for s in stats)


def _checked(data: bytes, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[pa.BinaryArray, int]:
    """Values from entries (checksum + value) of the given lengths, one after another in `data`; and how many are bad.

    Null where there is no entry (length 0), where its length is none that we write (not in `data`), or where the
    checksum is not the value's.
    """
    if len(data) > np.iinfo(np.int32).max:
        raise CacheError(f"{len(data)} bytes of values at once; ask for fewer keys")
    there = np.flatnonzero((lengths >= _HEAD) & (lengths <= MAX_VALUE_BYTES + _HEAD))
    ends = np.cumsum(lengths[there])
    starts = ends - lengths[there]
    view, raw = memoryview(data), np.frombuffer(data, np.uint8)
    bodies = zip((starts + _HEAD).tolist(), ends.tolist(), strict=True)
    sums = np.array([xxhash.xxh3_64_intdigest(view[a:b]) for a, b in bodies], np.uint64)
    heads = starts[:, None] + np.arange(_HEAD)
    good = raw[heads].view("<u8")[:, 0] == sums
    if len(there) and (lengths[there] == lengths[there[0]]).all():  # one model's vectors
        values = np.ascontiguousarray(raw.reshape(len(there), -1)[:, _HEAD:])
    else:
        values = np.delete(raw, heads.ravel())
    valid = np.zeros(len(lengths), np.bool_)
    valid[there] = good
    offsets = np.zeros(len(lengths) + 1, np.int32)
    offsets[there + 1] = lengths[there] - _HEAD
    buffers = [np.packbits(valid, bitorder="little"), np.cumsum(offsets, dtype=np.int32), values]
    array = pa.Array.from_buffers(pa.binary(), len(lengths), [pa.py_buffer(b) for b in buffers])
    return array, int((lengths > 0).sum() - valid.sum())
