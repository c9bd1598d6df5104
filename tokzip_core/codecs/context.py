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
_FAULTS = {
    1: "more tokens than its bytes can hold",
    2: "a token further back than the row begins",
}


class Context(Codec):
    name = "context"
    version = 1
    max_body = MAX_BODY

    def model(self) -> SampledRows:
        return SampledRows()

    def train(self, model: Any) -> tuple[bytes, float]:
        from tokzip_core.models.context_train import train_lists

        return train_lists(model.counts, *model.rows())

    def tables(self, body: bytes) -> ContextTables:
        return read_tables(body)

    def encode(self, column: Column, tables: ContextTables) -> tuple[bytes, Int64s]:
        from tokzip_core.kernels.context_encode import encode_rows

        t = tables
        dense, recent_entries, table, all_weights = t.encoding
        n = len(column)
        sizes = column.ends - column.starts
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes + 1)))
        ends = np.empty(n, np.int64)
        parts: list[bytes] = []
        row, size = 0, 0
        scratch = np.empty(0, np.uint8)
        while row < n:
            last = max(row + 1, int(np.searchsorted(before, before[row] + _RUN, "right")) - 1)
            room = 32 * int(before[last] - before[row])
            if scratch.size < room:
                scratch = np.empty(room, np.uint8)
            run = slice(row, last)
            encode_rows(
                column.values, column.starts[run], column.ends[run], dense, t.ids, t.lists, t.weights, t.first,
                t.recents, recent_entries, t.flags, t.pairs, table, all_weights, scratch, ends[run],
            )  # fmt: skip
            parts.append(scratch[: ends[last - 1]].tobytes())
            ends[run] += size
            size += len(parts[-1])
            row = last
        return b"".join(parts), ends

    def decode(self, column: Column, tables: ContextTables) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.context_decode import decode_rows

        t = tables
        status, row, tokens, ends = decode_rows(
            column.values, column.starts, column.ends, t.lists, t.first, t.recents, t.flags, t.pairs, t.ids
        )
        if status:
            raise CorruptBlobError(f"row {row} is not a blob of this codebook: {_FAULTS[status]}")
        return tokens, ends
