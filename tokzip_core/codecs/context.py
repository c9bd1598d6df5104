"""Codec `context`: what the row has said and pruned n-grams, range coded. Imports columns, models, kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.columns import Column, Int32s, Int64s
from tokzip_core.errors import CorruptBlobError
from tokzip_core.models.context import MAX_BODY, ContextTables, read_tables
from tokzip_core.models.context_rows import SampledRows

_RUN = 1 << 16  # tokens encoded at a time
_FULL = 1
_FAULTS = {
    2: "more tokens than its bytes can hold",
    3: "a token further back than the row begins",
}


class Context(Codec):
    name = "context"
    version = 1
    max_body = MAX_BODY

    def model(self) -> SampledRows:
        return SampledRows()

    def train(self, model: Any) -> tuple[bytes, float]:
        from tokzip_core.models.context_train import train_lists

        return train_lists(model)

    def tables(self, body: bytes) -> ContextTables:
        return read_tables(body)

    def encode(self, column: Column, tables: ContextTables) -> tuple[bytes, Int64s]:
        from tokzip_core.kernels.context import encode_rows

        t = tables
        dense, recent, table, all_entries, totals, escapes = t.encoding
        n = len(column)
        sizes = column.ends - column.starts
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes + 1)))
        ends = np.empty(n, np.int64)
        parts: list[bytes] = []
        row, size = 0, 0
        tokens, scratch = np.empty(0, np.int32), np.empty(0, np.uint8)
        while row < n:
            last = max(row + 1, int(np.searchsorted(before, before[row] + _RUN, "right")) - 1)
            room = int(before[last] - before[row])
            if tokens.size < room:
                tokens, scratch = np.empty(room, np.int32), np.empty(32 * room, np.uint8)
            run = slice(row, last)
            encode_rows(
                column.values, column.starts[run], column.ends[run], dense, t.ids, tokens, t.heads, t.weights, t.first,
                t.frequency, t.flags, t.pairs, recent, table, all_entries, totals, escapes, scratch, ends[run],
            )  # fmt: skip
            parts.append(scratch[: ends[last - 1]].tobytes())
            ends[run] += size
            size += len(parts[-1])
            row = last
        return b"".join(parts), ends

    def decode(self, column: Column, tables: ContextTables) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.context import decode_rows

        t = tables
        ends = np.empty(len(column), np.int64)
        tokens = np.empty(256 + 2 * int((column.ends - column.starts).sum()), np.int32)
        status, row, size = _FULL, 0, 0
        while status == _FULL:
            status, row, size = decode_rows(
                column.values, column.starts, column.ends, row, t.heads, t.classes, t.symbols, t.first, t.frequency,
                t.flags, t.pairs, t.ids, tokens, size, ends,
            )  # fmt: skip
            if status == _FULL:
                tokens.resize(2 * tokens.size, refcheck=False)
        if status:
            raise CorruptBlobError(f"row {row} is not a blob of this codebook: {_FAULTS[status]}")
        tokens.resize(size, refcheck=False)
        return tokens, ends
