"""The folder layer: Parquet files in a folder of any fsspec store, for many machines. Imports fsspec, parts, index."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from tokzip_core.cache import parts
from tokzip_core.cache.index import MAX_FILES, KeyIndex, Keys, Places, key_words
from tokzip_core.cache.layer import CacheError, CacheLayer, binary_array, key_bytes

PART_BYTES = 64 << 20  # what compaction makes; a part below a quarter of it is small
_FLUSH_BYTES = 4 << 20
_FLUSH_SECONDS = 10.0
_REFRESH_SECONDS = 10.0
_GROUP_BYTES = 64 << 20  # of row groups kept in memory
_OWN_SMALL_PARTS = 32
_SMALL_PARTS = 256
_READERS = 8  # parts whose keys are read at once


class FolderLayer(CacheLayer):
    """Entries in parts (Parquet files) that are written once, and later merged into fewer; any number of writers.

    What is put is written by the first `put_many` after 4 MiB or 10 seconds, in `flush` and in `close`. In memory are
    the index of the keys (16 to 48 bytes an entry), what is not written yet, and the row groups read last. Not bounded:
    let the store expire what is old. Connects when first used.
    """

    name = "folder"

    def __init__(self, url: str, part_bytes: int = PART_BYTES, refresh_seconds: float = _REFRESH_SECONDS) -> None:
        """Raises CacheError where fsspec has no client for the URL."""
        super().__init__()
        import fsspec

        try:
            for protocol in (fsspec.core.split_protocol(url)[0] or "file").split("::"):
                fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise CacheError(f"folder cache {url}: {error}") from error
        self._url = url
        self.part_bytes, self.refresh_seconds = part_bytes, refresh_seconds
        self._lock = threading.RLock()
        self._writer = secrets.token_hex(4)
        self._index = KeyIndex()
        self._parts: dict[str, parts.Part] = {}
        self._by_number: dict[int, parts.Part] = {}
        self._unreadable: dict[str, int] = {}  # by name, the size at which it was
        self._refreshed = float("-inf")
        self._groups: OrderedDict[tuple[int, int], parts.Entries] = OrderedDict()
        self._group_bytes = 0
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes, self._pending_since = 0, 0.0

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """The file system, and the folder in it; some connect at once."""
        from fsspec.core import url_to_fs

        try:
            fs, root = url_to_fs(self._url)
        except (ValueError, ImportError) as error:
            raise CacheError(f"folder cache: {error}") from error
        return fs, root

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        words = key_words(keys)
        with self._lock:
            values: list[bytes | None] = [self._pending.get(k) for k in key_bytes(keys)]
            for _ in range(10):  # a part that is gone has been merged into another
                wanted = np.array([v is None for v in values], np.bool_)
                files, rows = self._index.find(words)
                if (files[wanted] < 0).any() and time.monotonic() - self._refreshed > self.refresh_seconds:
                    self.refresh()
                    files, rows = self._index.find(words)
                if self._read(words, np.where(wanted, files, -1), rows, values):
                    break
                self.refresh()
            found = sum(v is not None for v in values)
            self._count(hits=found, misses=len(values) - found)
        return binary_array(values)

    def _read(self, words: Keys, files: Places, rows: Places, values: list[bytes | None]) -> bool:
        """Fill in the values of keys in those files and rows; False if one of the files is not there any more."""
        groups = np.where(files < 0, -1, files * (1 << 24) + rows // parts.GROUP_ROWS)
        for group in np.unique(groups[groups >= 0]).tolist():
            at = np.flatnonzero(groups == group)
            part = self._by_number.get(group >> 24)
            if part is None:  # another of its groups was damaged
                continue
            try:
                entries = self._group(part, group & (1 << 24) - 1)
            except FileNotFoundError:
                return False
            except parts.DamagedPartError:
                self._forget(part)
                self._unreadable[part.name] = part.size
                self._count(corrupt=1)
                continue
            inside = rows[at] % parts.GROUP_ROWS
            ours = inside < len(entries.good)
            ours[ours] = (entries.keys[inside[ours]] == words[at[ours]]).all(1)
            bad = at[ours][~entries.good[inside[ours]]]
            if len(bad):
                self._index.remove(words[bad])
                self._count(corrupt=len(bad))
            for i, row in zip(at[ours].tolist(), inside[ours].tolist(), strict=True):
                if entries.good[row]:
                    values[i] = entries.values[row].as_py()
        return True

    def _group(self, part: parts.Part, number: int) -> parts.Entries:
        place = part.number, number
        if place in self._groups:
            self._groups.move_to_end(place)
            return self._groups[place]
        entries = self._groups[place] = parts.read_group(self._store[0], part, number)
        self._group_bytes += entries.values.nbytes
        while self._group_bytes > _GROUP_BYTES and len(self._groups) > 1:
            self._group_bytes -= self._groups.popitem(last=False)[1].values.nbytes
        return entries

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        with self._lock:
            if self._pending_bytes > _FLUSH_BYTES:  # they could not be written; no more until they can
                try:
                    self.flush()
                except Exception:
                    self._count(refused=len(keys))
                    raise
            there = self._index.find(key_words(keys))[0] >= 0
            if not self._pending:
                self._pending_since = time.monotonic()
            for key, value, known in zip(key_bytes(keys), values.to_pylist(), there.tolist(), strict=True):
                if not known and key not in self._pending:
                    self._pending[key] = value
                    self._pending_bytes += len(value)
                    self._count(puts=1)
            self._flush_when_due()

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:
        with self._lock:
            self._index.remove(key_words(keys))
            for key in key_bytes(keys):
                self._pending_bytes -= len(self._pending.pop(key, b""))

    def _flush_when_due(self) -> None:
        waited = time.monotonic() - self._pending_since
        if self._pending and (self._pending_bytes > _FLUSH_BYTES or waited > _FLUSH_SECONDS):
            self.flush()

    def flush(self) -> None:
        with self._lock:
            if not self._pending:
                return
            words = np.frombuffer(b"".join(self._pending), np.uint64).reshape(-1, 4)
            self._write(words, binary_array(list(self._pending.values())))
            self._pending, self._pending_bytes = {}, 0
            small = [p for p in self._parts.values() if p.size < self.part_bytes // 4]
            own = [p for p in small if p.name.endswith(f"-{self._writer}.parquet")]
            if len(own) >= _OWN_SMALL_PARTS:
                self.compact(own)
            elif len(small) >= _SMALL_PARTS:
                self.compact(small)

    def _write(self, words: Keys, values: pa.BinaryArray) -> parts.Part:
        name = f"{time.time_ns():020d}-{self._writer}.parquet"
        part = parts.write(*self._store, name, self._number(), words, values)
        self._add(part, words)
        return part

    def refresh(self) -> None:
        """Index the parts that others have written, forget those that are gone."""
        with self._lock:
            self._refreshed = time.monotonic()
            there = parts.list_parts(*self._store)
            for name in [n for n in self._parts if n not in there]:
                self._forget(self._parts[name])
            new = sorted(n for n, size in there.items() if n not in self._parts and self._unreadable.get(n) != size)
            with ThreadPoolExecutor(_READERS) as pool:
                for name, found in zip(new, pool.map(self._opened, new), strict=True):
                    if found is None:
                        self._unreadable[name] = there[name]  # not written to its end yet, or damaged
                    elif len(self._parts) < MAX_FILES:
                        words, groups = found
                        path = f"{self._store[1]}/{name}"
                        self._add(parts.Part(name, path, self._number(), there[name], groups), words)

    def _opened(self, name: str) -> tuple[Keys, int] | None:
        fs, root = self._store
        try:
            return parts.read_keys(fs, f"{root}/{name}")
        except (FileNotFoundError, parts.DamagedPartError):
            return None

    def _number(self) -> int:
        last = len(self._by_number)
        return last if last not in self._by_number else next(i for i in range(last) if i not in self._by_number)

    def _add(self, part: parts.Part, words: Keys) -> None:
        self._parts[part.name] = self._by_number[part.number] = part
        self._index.add(words, part.number, 0)

    def _forget(self, part: parts.Part) -> None:
        self._index.drop(part.number)
        del self._parts[part.name], self._by_number[part.number]
        for place in [p for p in self._groups if p[0] == part.number]:
            self._group_bytes -= self._groups.pop(place).values.nbytes

    def compact(self, small: list[parts.Part] | None = None) -> int:
        """Merge small parts into few, and return how many fewer there are; no entry is ever out of reach of a reader.

        The merged part is there, whole, before the first of its sources is deleted. Who finds a source gone looks for
        new parts. Two who merge the same sources leave two parts of the same entries: a later merge makes one of them
        where both are below a quarter of `part_bytes`; larger ones both stay until the store expires them.
        """
        with self._lock:
            if small is None:
                self.refresh()
                small = [p for p in self._parts.values() if p.size < self.part_bytes // 4]
            small = sorted(small, key=lambda p: p.name)
            before, batch = len(self._parts), list[parts.Part]()
            for part in [*small, None]:
                if part is None or sum(p.size for p in batch) + part.size > self.part_bytes:
                    self._merge(batch)
                    batch = []
                if part is not None:
                    batch.append(part)
            return before - len(self._parts)

    def _merge(self, sources: list[parts.Part]) -> None:
        read = []
        for part in sources:
            with contextlib.suppress(
                FileNotFoundError, parts.DamagedPartError
            ):  # another has merged it; or leave it be
                read.append((part, [parts.read_group(self._store[0], part, g) for g in range(part.groups)]))
        if len(read) < 2:
            return
        groups = [group for _, found in read for group in found]
        words = np.concatenate([g.keys[g.good] for g in groups])
        values = pa.concat_arrays([g.values.filter(pa.array(g.good)) for g in groups])
        first = np.unique(words, axis=0, return_index=True)[1]
        first.sort()
        self._write(np.ascontiguousarray(words[first]), values.take(pa.array(first)))
        for part, _ in read:
            self._forget(part)
            with contextlib.suppress(FileNotFoundError):
                self._store[0].rm_file(part.path)

    def close(self) -> None:
        with self._lock:
            self.flush()
            self._groups.clear()
            self._group_bytes = 0
