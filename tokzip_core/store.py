"""A corpus held compressed in memory, rows decoded when asked for. Imports blob, codebook, columns, table, errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokzip_core.blob import blob_rows, naming
from tokzip_core.codebook import Codebook
from tokzip_core.columns import Column, Int32s, Int64s, UInt8s, variable_array
from tokzip_core.errors import TokzipError
from tokzip_core.table import blob_chunks, files_of

_TURN = 4096  # rows decoded at a time when a store is iterated over
_NARROW = 1 << 32  # bytes, and rows, that 32 bits can number
_AFTER = 16  # zero bytes after the last blob, so that kernels may read past it without a copy


class TokenStore:
    """A column of token blobs in memory: their bytes and 4 bytes a row (8 from 4 GiB on), nothing else.

    `store[i]` is one row: int32[n], or None for a null row. `store[a:b:c]` and `store[indices]` (a list or an integer
    array, in any order, repeats too) are a `pa.ListArray` of `list<int32>`, decoded in one call. A negative index
    counts from the end; IndexError beyond either. Bytes are checked as they are decoded: CorruptBlobError names the
    store's row.

    It is a map-style torch Dataset (`DataLoader` fetches a batch in one call), may be shared by threads and by forked
    processes without a copy, and pickles by value.
    """

    def __init__(self, blobs: pa.Array | pa.ChunkedArray, codebook: Codebook, checksum: bool = False) -> None:
        """Copy a column of blobs; arguments and errors are those of `decode`, checksums are verified now."""

        def columns() -> Iterator[Column]:
            row = 0
            for chunk in blobs.chunks if isinstance(blobs, pa.ChunkedArray) else [blobs]:
                with naming(range(row, row + len(chunk))):
                    column = blob_rows(chunk, codebook, checksum)
                yield column
                row += len(chunk)

        self._keep(columns(), codebook)

    @classmethod
    def open(cls, source: str | PathLike[str] | Sequence[str | PathLike[str]], column: str = "tokens") -> TokenStore:
        """Read the blobs of Parquet files: a path or fsspec URL of a file or of a folder of files, or several of them.

        Only `column` is read. Page and row checksums are verified. Raises TokzipError where the files do not share
        one codebook or `column` holds no blobs, FileNotFoundError, and what `read_table` raises.
        """
        sources = [source] if isinstance(source, str | PathLike) else list(source)
        files = [file for each in sources for file in files_of(each)]
        if not files:
            raise FileNotFoundError("a store of no files")
        store, first = cls.__new__(cls), files[0][1]
        codebook, chunks = blob_chunks(*files[0], column)

        def columns() -> Iterator[Column]:
            yield from chunks
            for fs, path in files[1:]:
                other, more = blob_chunks(fs, path, column)
                if other != codebook:
                    raise TokzipError(f"a store has one codebook: {first} needs {codebook.id}, {path} {other.id}")
                yield from more

        store._keep(columns(), codebook)
        return store

    def _keep(self, columns: Iterable[Column], codebook: Codebook) -> None:
        from tokzip_core.kernels.checksum import gather

        # The system's realloc moves large blocks without a copy, so growing does not need the room twice.
        data, rows, size = np.empty(0, np.uint8), 0, 0
        lengths: list[npt.NDArray[np.uint32]] = []
        nulls: list[Int64s] = []
        for column in columns:
            lengths.append((column.ends - column.starts).astype(np.uint32))
            total = int(lengths[-1].sum(dtype=np.int64))
            data.resize(size + total + _AFTER, refcheck=False)
            gather(column.values, column.starts, column.ends, data[size:])
            if column.valid is not None:
                nulls.append(np.flatnonzero(~column.valid) + rows)
            rows, size = rows + len(column), size + total
        data.resize(size + _AFTER, refcheck=False)
        data[size:] = 0
        data.flags.writeable = False
        self.codebook = codebook
        self._data: UInt8s = data
        self._offsets = np.zeros(rows + 1, np.uint32 if size < _NARROW else np.uint64)
        if lengths:
            np.cumsum(np.concatenate(lengths), out=self._offsets[1:])
        self._valid: UInt8s | None = None  # a bit a row, where any is null
        if any(part.size for part in nulls):
            valid = np.ones(rows, np.bool_)
            valid[np.concatenate(nulls)] = False
            self._valid = np.packbits(valid, bitorder="little")

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._data.flags.writeable = False

    def __len__(self) -> int:
        return self._offsets.size - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the rows take, the codebook's tables not counted."""
        return self._data.nbytes + self._offsets.nbytes + (0 if self._valid is None else self._valid.nbytes)

    def __repr__(self) -> str:
        return f"<TokenStore {len(self):,} rows in {self.nbytes:,} bytes, {self.codebook.codec}>"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            return self._row(int(index))
        tokens, ends, valid = self._decode(self._rows(index))
        return variable_array(pa.list_(pa.int32()), ends, tokens, valid)

    def __getitems__(self, indices: Any) -> list[Int32s | None]:
        """The rows at `indices`, decoded in one call: what a torch `DataLoader` asks for."""
        tokens, ends, valid = self._decode(self._rows(indices))
        rows: list[Int32s | None] = list(np.split(tokens, ends[:-1])) if ends.size else []
        if valid is not None:
            for i in np.flatnonzero(~valid):
                rows[i] = None
        return rows

    def __iter__(self) -> Iterator[Int32s | None]:
        for begin in range(0, len(self), _TURN):
            yield from self.__getitems__(slice(begin, begin + _TURN))

    def batches(self, size: int, generator: np.random.Generator | None = None) -> Iterator[pa.ListArray]:
        """Every row once, `size` at a time (the last batch may be smaller), in random order if given a generator.

        For rows drawn with replacement: `store[generator.integers(len(store), size=size)]`.
        """
        if size < 1:
            raise ValueError(f"batches of {size} rows")
        order = np.arange(len(self), dtype=np.uint32 if len(self) < _NARROW else np.uint64)
        if generator is not None:
            generator.shuffle(order)
        for begin in range(0, len(self), size):
            yield self[order[begin : begin + size]]

    def _row(self, i: int) -> Int32s | None:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of a store of {len(self)}")
        i += len(self) if i < 0 else 0
        if self._valid is not None and not self._valid[i >> 3] >> (i & 7) & 1:
            return None
        bounds = self._offsets[i : i + 2].astype(np.int64)
        with naming([i]):
            column = Column(self._data, bounds[:1], bounds[1:], None)
            tokens, _ = self.codebook._codec.decode(column, self.codebook._tables)
        return tokens.copy()  # its buffer may be much larger

    def _rows(self, index: Any) -> Int64s:
        """The rows that a slice, a list or an array asks for, from 0 on."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self)), dtype=np.int64)
        asked = np.asarray(index)
        if asked.ndim != 1 or (asked.size and asked.dtype.kind not in "iu"):
            raise TypeError(f"rows are asked for by integers, a slice, or a list of integers, not {index!r}")
        beyond = (asked < -len(self)) | (asked >= len(self))
        if beyond.any():
            raise IndexError(f"row {asked[beyond][0]} of a store of {len(self)}")
        rows = asked.astype(np.int64)
        return np.where(rows < 0, rows + len(self), rows)

    def _decode(self, rows: Int64s) -> tuple[Int32s, Int64s, Any]:
        """The tokens of `rows`, each row's end in them, and which are not null (None: all)."""
        starts, ends = self._offsets[rows].astype(np.int64), self._offsets[rows + 1].astype(np.int64)
        with naming(rows):
            column = Column(self._data, starts, ends, None)
            tokens, token_ends = self.codebook._codec.decode(column, self.codebook._tables)
        valid = None if self._valid is None else (self._valid[rows >> 3] >> (rows & 7) & 1).astype(np.bool_)
        return tokens, token_ends, valid
