"""A codec behind a transform: run-length, then any codec of order 0. Imports codecs, transforms, columns, errors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.columns import Column, Int32s, Int64s
from tokzip_core.errors import CorruptCodebookError
from tokzip_core.transforms.run_length import EXPANSION, SIZE, RunLength, RunLengthModel


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
        """The shorter of a row with its runs collapsed and as it is, so that no row grows."""
        transform, inner = tables
        symbols = transform.collapse(column)
        data, ends = self.inner.encode(symbols, inner)
        lengths = column.ends - column.starts
        rows = np.flatnonzero(symbols.ends - symbols.starts < lengths)
        if not rows.size:
            return data, ends
        plain = transform.collapse(Column(column.values, column.starts[rows], column.ends[rows], None), 1 << 62)
        plain_data, plain_ends = self.inner.encode(plain, inner)
        sizes, plain_sizes = np.diff(ends, prepend=0), np.diff(plain_ends, prepend=0)
        better = (plain_sizes < sizes[rows]) | (lengths[rows] > sizes[rows] * EXPANSION)
        if not better.any():
            return data, ends
        starts = ends - sizes
        starts[rows[better]] = len(data) + (plain_ends - plain_sizes)[better]
        sizes[rows[better]] = plain_sizes[better]
        every = np.frombuffer(bytes(data) + bytes(plain_data), np.uint8)
        return Column(every, starts, starts + sizes, None).tokens().tobytes(), np.cumsum(sizes)

    def decode(self, column: Column, tables: tuple[RunLength, Any]) -> tuple[Int32s, Int64s]:
        transform, inner = tables
        symbols, ends = self.inner.decode(column, inner)
        starts = np.concatenate((np.zeros(1, np.int64), ends))[:-1]
        return transform.expand(Column(symbols, starts, ends, None), column.ends - column.starts)
