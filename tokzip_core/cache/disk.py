"""The disk layer: files of a folder, kept between runs, shared by processes. Imports segments and index."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokzip_core.cache import segments
from tokzip_core.cache.index import MAX_FILES, KeyIndex, Keys, Places, key_words
from tokzip_core.cache.layer import CacheError, CacheLayer, array_of, flat
from tokzip_core.cache.segments import PLACE, RECORD, SUM, Segment, Writer

_REFRESH_SECONDS = 0.1  # at most this often are files looked for that other processes have written
_LOCK_SECONDS = 5.0
_SEGMENTS = 64  # about so many when full: what is evicted at once is that part of the whole
_MAX_SEGMENT_BYTES = 1 << 32


class DiskLayer(CacheLayer):
    """A folder with a bound on the bytes of its files, the sum over all processes that use it.

    What does not fit evicts whole segments: never one that an open layer of any process has read from or written to,
    so that a running job keeps what it needs; of the others, those that the oldest run used last. Where there is none
    left to evict, new entries are not kept (counted as `refused`): a job of more rows than the bound has room for finds
    the first of them again. A folder opened with a lower bound than before is brought down to it. The index of the keys
    is in memory, 16 to 48 bytes an entry. Its files are mapped: do not truncate one in use, which ends the process with
    SIGBUS; deleting is safe. Raises CacheError where the folder cannot be used.
    """

    name = "disk"

    def __init__(self, path: str, max_bytes: int) -> None:
        super().__init__()
        self.path = os.path.realpath(path)
        self.max_bytes = max_bytes
        self.segment_bytes = min(max_bytes // _SEGMENTS, _MAX_SEGMENT_BYTES)
        self._started = time.time()
        self._adopt = True
        self._segments: dict[str, Segment] = {}
        from tokzip_core.kernels import entries

        self._kernels = entries
        try:
            Path(self.path).mkdir(parents=True, exist_ok=True)
            with segments.folder_lock(self.path, _LOCK_SECONDS):
                self._make_room(0, segments.sizes(self.path))  # what others use stays, however low the bound
        except OSError as error:
            raise CacheError(f"disk cache {path}: cannot be opened for reading and writing: {error}") from error
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._index = KeyIndex()
        self._segments = {}
        self._by_number: dict[int, Segment] = {}
        self._maps = np.zeros((0, 4), np.uint64)
        self._foreign: set[str] = set()
        self._writer: Writer | None = None
        self._refresh(segments.sizes(self.path))

    def _in_this_process(self) -> None:
        """In a forked child: the locks are the parent's; begin anew."""
        if self._process != os.getpid():
            self._let_go()
            self._begin()

    def _refresh(self, names: dict[str, int]) -> None:
        """Index what is new in the folder, forget what is gone."""
        self._refreshed = time.monotonic()
        for name in [n for n in self._segments if n not in names]:
            self._forget(self._segments[name])
        for name in sorted(names.keys() - self._foreign):
            segment = self._segments.get(name)
            try:
                if segment is None:
                    number = next(i for i in range(len(self._by_number) + 1) if i not in self._by_number)
                    if number == MAX_FILES:
                        return
                    segment = Segment(self.path, name, number)
                    self._segments[name] = self._by_number[number] = segment
                self._grow(segment)
            except FileNotFoundError:  # deleted, or not written yet
                continue
            except (OSError, ValueError):
                self._foreign.add(name)
                self._count(corrupt=1)

    def _grow(self, segment: Segment) -> None:
        first = segment.grow()
        if len(segment.records) > first:
            self._map(segment)
            self._index.add(np.ascontiguousarray(segment.records[first:, :PLACE]), segment.number, first)

    def _map(self, segment: Segment) -> None:
        """Where the kernels find the segment; in a new table, since a look-up may be reading the old one."""
        maps = np.zeros((max(len(self._maps), segment.number + 1), 4), np.uint64)
        maps[: len(self._maps)] = self._maps
        records, data = segment.records, segment.data
        maps[segment.number] = records.ctypes.data, len(records), data.ctypes.data, len(data)
        self._maps = maps

    def _forget(self, segment: Segment) -> None:
        self._index.drop(segment.number)
        segment.close()
        del self._segments[segment.name], self._by_number[segment.number]
        if self._writer is not None and self._writer.segment is segment:
            self._stop_writing()

    def _locate(self, keys: Keys) -> tuple[Places, Places, Places]:
        """The file and row of each key's entry, and the bytes of its value, or what below 0 says why there is none."""
        files, rows = self._index.find(keys)
        sizes = np.empty(len(keys), np.int64)
        self._kernels.lengths(keys, files, rows, self._maps, sizes)
        return files, rows, sizes

    def get_many(self, keys: pa.FixedSizeBinaryArray) -> pa.BinaryArray:
        words = key_words(keys)
        self._in_this_process()
        with self._lock:
            files, rows, sizes = self._locate(words)
            if (sizes < 0).any() and time.monotonic() - self._refreshed > _REFRESH_SECONDS:
                self._refresh(segments.sizes(self.path))
                files, rows, sizes = self._locate(words)
            maps, kept = self._maps, []
            for number in np.flatnonzero(np.bincount(files[sizes >= 0])).tolist():
                segment = self._by_number[number]
                segment.use(self._started)
                kept.append((segment.records, segment.data))  # mapped as long as they are read
        ends = np.cumsum(np.maximum(sizes, 0))
        out = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        good = np.zeros(len(words), np.bool_)
        self._kernels.read(words, files, rows, maps, sizes, ends - sizes, out, good)
        del kept
        corrupt = ~good & (sizes != self._kernels.OTHER_KEY)
        with self._lock:
            if corrupt.any():
                self._index.remove(words[corrupt])
            self._count(hits=good.sum(), misses=(~good).sum(), corrupt=corrupt.sum())
        return array_of(out, ends, good)

    def put_many(self, keys: pa.FixedSizeBinaryArray, values: pa.BinaryArray) -> None:
        words = key_words(keys)
        self._in_this_process()
        with self._lock:
            longest = min(self._kernels.MAX_VALUE_BYTES, self.segment_bytes - 2 * RECORD)
            new = (self._locate(words)[2] < 0) & (np.asarray(pc.binary_length(values)) <= longest)
            if not new.any():
                return
            words, values = np.ascontiguousarray(words[new]), values.filter(pa.array(new))
            data, starts, ends = flat(values)
            records = np.empty((len(words), 5), np.uint64)
            records[:, :PLACE] = words[:, :PLACE]
            records[:, PLACE] = (ends - starts) << self._kernels.PLACE_BITS
            sums = np.empty(len(words), np.uint64)
            self._kernels.checksums(words, data, starts, ends, sums)
            records[:, SUM] = sums
            try:
                with segments.folder_lock(self.path, _LOCK_SECONDS):
                    self._append(records, data, starts, ends)
            except OSError as error:  # no room on the device, or no folder any more
                self._adopt = False
                self._stop_writing()
                raise CacheError(f"disk cache {self.path}: {error}") from error

    def discard_many(self, keys: pa.FixedSizeBinaryArray) -> None:
        self._in_this_process()
        with self._lock:
            self._index.remove(key_words(keys))

    def _append(self, records: Keys, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        there = segments.sizes(self.path)
        self._refresh(there)
        cost = np.cumsum(ends - starts + RECORD)
        first = 0
        while first < len(records):
            before = int(cost[first - 1]) if first else 0
            writer = self._writer_for(int(cost[first]) - before, there)
            if writer is None:
                self._count(refused=len(records) - first)
                return
            room = self.segment_bytes - there[writer.segment.name]
            last = max(first + 1, int(np.searchsorted(cost, before + room, "right")))
            need = int(cost[last - 1]) - before
            if not self._make_room(need, there):
                self._count(refused=len(records) - first)
                return
            records[first:last, PLACE] += (starts[first:last] - starts[first]).astype(np.uint64)
            writer.append(records[first:last], data[starts[first] : ends[last - 1]].data)
            self._grow(writer.segment)
            there[writer.segment.name] += need
            self._count(puts=last - first)
            first = last

    def _make_room(self, need: int, there: dict[str, int]) -> bool:
        """Evict until `need` more bytes are within the bound; False where what is in use does not let them."""
        while sum(there.values()) + need > self.max_bytes:
            gone = segments.delete_unused(self.path, there)
            if gone is None:
                return False
            del there[gone]
            if gone in self._segments:
                self._count(evicted=len(self._segments[gone].records))
                self._forget(self._segments[gone])
        return True

    def _writer_for(self, size: int, there: dict[str, int]) -> Writer | None:
        """With room for `size` bytes: the one at hand, that of a segment left half empty, or that of a new one.

        None where a new one has no room.
        """
        if self._writer is not None and there[self._writer.segment.name] + size <= self.segment_bytes:
            return self._writer
        self._stop_writing()
        for name in sorted(self._segments, reverse=True) if self._adopt else ():
            if there[name] <= self.segment_bytes // 2:
                with contextlib.suppress(OSError):  # another process appends to it
                    self._writer = Writer(self._segments[name])
                    break
        if self._writer is None:
            if not self._make_room(RECORD + size, there):
                return None
            name = segments.create(self.path)
            there[name] = RECORD
            self._refresh(there)
            self._writer = Writer(self._segments[name])
        self._writer.segment.use(self._started)
        return self._writer

    def _stop_writing(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _let_go(self) -> None:
        self._stop_writing()
        for segment in self._segments.values():
            segment.close()

    def close(self) -> None:
        with self._lock:
            self._let_go()
            self._segments, self._by_number, self._index = {}, {}, KeyIndex()
