"""Codec `huffman`: the order-0 model coded by a prefix-class code. Imports columns, models, coders, kernels."""

from __future__ import annotations

import struct

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.coders.prefix import MAX_IDS, PrefixTables, build_tables, choose_lengths
from tokzip_core.coders.varint import decode_varints, encode_varints
from tokzip_core.columns import Column, Int32s, Int64s, read_only
from tokzip_core.errors import CorruptBlobError, CorruptCodebookError
from tokzip_core.models.order0 import Order0

_RUN = 1 << 18  # tokens encoded at a time: the bytes written stay in the cache
_PADDING = 16  # bytes
_FAULTS = {
    1: "its last byte is zero",
    2: "a code that the codebook does not assign",
    3: "an escaped id that has a code",
}


class Huffman(Codec):
    name = "huffman"
    version = 1
    max_body = 5 + 6 * MAX_IDS

    def model(self) -> Order0:
        return Order0()

    def train(self, model: Order0) -> tuple[bytes, float]:
        order = np.lexsort((model.ids, -model.counts))[:MAX_IDS]
        counts = model.counts[order]
        weights = np.append(counts, np.int64(1))  # the escape: as rare as the rarest
        lengths = choose_lengths(weights)
        by_id = np.argsort(model.ids[order])
        ids = model.ids[order][by_id]
        gaps = np.diff(ids, prepend=np.uint32(0)) - (np.arange(ids.size) > 0)
        by_id = np.append(by_id, ids.size)  # the escape stays last
        body = struct.pack("<I", ids.size) + encode_varints(gaps.astype(np.uint32)) + lengths[by_id].tobytes()
        return body, float((counts * lengths[:-1]).sum() / max(1, counts.sum()))

    def tables(self, body: bytes) -> PrefixTables:
        if len(body) < 5:
            raise CorruptCodebookError("a body of less than 5 bytes")
        (n,) = struct.unpack_from("<I", body)
        if n > MAX_IDS or len(body) < 5 + 2 * n:
            raise CorruptCodebookError(f"{n} ids in a body of {len(body)} bytes; at most {MAX_IDS} are allowed")
        lengths_at = len(body) - n - 1
        gaps = decode_varints(body[4:lengths_at], n).astype(np.uint64)
        ids = np.cumsum(gaps) + np.arange(n, dtype=np.uint64)
        if n and ids[-1] >= 1 << 31:
            raise CorruptCodebookError(f"an id of {ids[-1]}, over 2^31 - 1")
        return build_tables(ids.astype(np.uint32), np.frombuffer(body, np.uint8, n + 1, lengths_at))

    def encode(self, column: Column, tables: PrefixTables) -> tuple[bytes, Int64s]:
        from tokzip_core.kernels.prefix import encode_rows

        t = tables
        n = len(column)
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(column.ends - column.starts)))
        ends = np.empty(n, np.int64)
        parts: list[bytes] = []
        row, size, scratch = 0, 0, np.empty(0, np.uint8)
        while row < n:
            last = max(row + 1, int(np.searchsorted(before, before[row] + _RUN, "right")) - 1)
            room = 8 * int(before[last] - before[row]) + 16
            if scratch.size < room:
                scratch = np.empty(room, np.uint8)
            run = slice(row, last)
            encode_rows(
                column.values,
                column.starts[run],
                column.ends[run],
                t.entries,
                t.ids,
                t.id_entries,
                np.uint64(t.escape),
                t.triple,
                scratch,
                ends[run],
            )
            parts.append(scratch[: ends[last - 1]].tobytes())
            ends[run] += size
            size += len(parts[-1])
            row = last
        return b"".join(parts), ends

    def decode(self, column: Column, tables: PrefixTables) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.prefix import decode_rows

        t = tables
        starts, stops, data = column.starts, column.ends, column.values
        room = int((8 * (stops - starts) // t.shortest + 3).sum())  # pages that are never written cost nothing
        tokens = np.empty(room, np.int32)
        ends = np.empty(len(column), np.int64)
        size = 0
        # The kernel reads up to 16 bytes past a row: the rows at the end of the data are decoded from a padded copy.
        cut = int(np.searchsorted(stops, data.size - _PADDING, "right"))
        for rows in (slice(0, cut), slice(cut, len(column))):
            if rows.start == rows.stop:
                continue
            begin = 0
            if rows.start == cut:
                begin = starts[cut]
                data = read_only(np.concatenate((data[begin:], np.zeros(_PADDING, np.uint8))))
            fault, row = decode_rows(
                data,
                starts[rows] - begin,
                stops[rows] - begin,
                t.slots,
                t.tokens,
                t.ids,
                t.id_entries,
                t.shortest,
                t.triple,
                tokens[size:],
                ends[rows],
            )
            if fault:
                raise CorruptBlobError(f"row {rows.start + row} is not a blob of this codebook: {_FAULTS[fault]}")
            ends[rows] += size
            size = int(ends[rows.stop - 1])
        tokens.resize(size, refcheck=False)
        return tokens, ends
