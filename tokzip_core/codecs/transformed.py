"""A codec behind a transform: run-length, then any codec of order 0. Imports codecs, transforms, columns, errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.columns import Column, Int32s, Int64s
from tokzip_core.errors import CorruptCodebookError
from tokzip_core.transforms.run_length import EXPANSION, NO_RUNS, SIZE, RunLength, RunLengthModel


class Transformed(Codec):
    """Its codebook body is the transform's, then the inner codec's; its blobs are the inner codec's, of symbols."""

    def __init__(self, name: str, inner: Codec) -> None:
        self.name = name
        self.inner = inner
        self.version = inner.version
        self.max_body = SIZE + inner.max_body

    def model(self) -> RunLengthModel:
        return RunLengthModel()

    def train(self, model: RunLengthModel) -> tuple[bytes, float]:
        transform, symbols = model.finish()
        body, bits = self.inner.train(symbols)
        return transform.to_bytes() + body, bits * symbols.tokens / max(1, model.tokens)

    def tables(self, body: bytes) -> tuple[RunLength, Any]:
        if len(body) < SIZE:
            raise CorruptCodebookError(f"a body of {len(body)} bytes")
        return RunLength.from_bytes(body[:SIZE]), self.inner.tables(body[SIZE:])

    def encode(self, column: Column, tables: tuple[RunLength, Any]) -> tuple[Any, Int64s]:
        """The shorter of a row with its runs collapsed, as far as the bound on a row's tokens allows, and as it is."""
        transform, inner = tables
        symbols = transform.collapse(column)
        data, ends = self.inner.encode(symbols, inner)
        lengths = column.ends - column.starts
        collapsed = np.flatnonzero(symbols.ends - symbols.starts < lengths)
        if not collapsed.size:
            return data, ends
        sizes = np.diff(ends, prepend=0)
        blobs = Column(data, ends - sizes, ends, None)
        dense = np.flatnonzero(lengths > sizes * EXPANSION)
        if dense.size:
            blobs = _replaced(blobs, dense, *self._encode_dense(_rows(column, dense), tables))
        plain, plain_ends = self.inner.encode(transform.collapse(_rows(column, collapsed), NO_RUNS), inner)
        better = np.diff(plain_ends, prepend=0) < (blobs.ends - blobs.starts)[collapsed]
        if better.any():
            blobs = _replaced(blobs, collapsed, plain, plain_ends, better)
        return blobs.tokens(), np.cumsum(blobs.ends - blobs.starts)

    def _encode_dense(self, column: Column, tables: tuple[RunLength, Any]) -> tuple[Any, Int64s]:
        """Rows whose runs say more than EXPANSION tokens a byte: with as few tokens spelled out first as mend that.

        The number is found by bisection: spelled out, a token costs more than its share; all of them are enough, since
        no codec puts that many into a byte.
        """
        transform, inner = tables
        lengths = column.ends - column.starts
        least = -(-lengths // EXPANSION)  # bytes
        few, enough = np.zeros_like(lengths), lengths.copy()
        rows = np.arange(len(column))
        while rows.size:
            tried = np.minimum((few[rows] + enough[rows]) // 2, 8 * few[rows] + 8)  # few are likely to do
            symbols = transform.collapse_after(_rows(column, rows), tried)
            sizes = np.diff(self.inner.encode(symbols, inner)[1], prepend=0)
            short = sizes < least[rows]
            few[rows[short]] = tried[short]
            enough[rows[~short]] = tried[~short]
            rows = rows[(sizes != least[rows]) & (enough[rows] > few[rows] + 1)]
        return self.inner.encode(transform.collapse_after(column, enough), inner)

    def decode(self, column: Column, tables: tuple[RunLength, Any]) -> tuple[Int32s, Int64s]:
        transform, inner = tables
        symbols, ends = self.inner.decode(column, inner)
        starts = np.concatenate((np.zeros(1, np.int64), ends))[:-1]
        return transform.expand(Column(symbols, starts, ends, None), column.ends - column.starts)


def _rows(column: Column, rows: Int64s) -> Column:
    return Column(column.values, column.starts[rows], column.ends[rows], None)


def _replaced(blobs: Column, rows: Int64s, data: Any, ends: Int64s, where: Any = slice(None)) -> Column:
    """`blobs` with those of `rows`, or of `rows[where]`, from `data` instead, where each of `rows` ends at `ends`."""
    values = np.concatenate((np.frombuffer(blobs.values, np.uint8), np.frombuffer(data, np.uint8)))
    starts, stops = blobs.starts.copy(), blobs.ends.copy()
    stops[rows[where]] = len(blobs.values) + ends[where]
    starts[rows[where]] = len(blobs.values) + (ends - np.diff(ends, prepend=0))[where]
    return Column(values, starts, stops, None)
