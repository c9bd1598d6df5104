"""Codec `huffman`: the order-0 model coded by a prefix-class code. Imports columns, models, coders, kernels."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.codecs.pieces import decode_pieces, encode_pieces
from tokzip_core.coders.prefix import MAX_IDS, PrefixTables, build_tables, choose_lengths
from tokzip_core.coders.varint import decode_ids, encode_ids
from tokzip_core.columns import MAX_ID, Column, Int32s, Int64s, UInt8s
from tokzip_core.errors import CorruptCodebookError, InvalidTokensError
from tokzip_core.models.order0 import Order0

_FAULTS = {
    1: "its last byte is zero",
    2: "a code that the codebook does not assign",
    3: "an escaped id that has a code",
}


class Huffman(Codec):
    name = "huffman"
    version = 1
    checks_ids = True
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
        by_id = np.append(by_id, ids.size)  # the escape stays last
        body = struct.pack("<I", ids.size) + encode_ids(ids) + lengths[by_id].tobytes()
        return body, float((counts * lengths[:-1]).sum() / max(1, counts.sum()))

    def tables(self, body: bytes) -> PrefixTables:
        if len(body) < 5:
            raise CorruptCodebookError("a body of less than 5 bytes")
        (n,) = struct.unpack_from("<I", body)
        if n > MAX_IDS or len(body) < 5 + 2 * n:
            raise CorruptCodebookError(f"{n} ids in a body of {len(body)} bytes; at most {MAX_IDS} are allowed")
        lengths_at = len(body) - n - 1
        return build_tables(decode_ids(body[4:lengths_at], n), np.frombuffer(body, np.uint8, n + 1, lengths_at))

    def encode(self, column: Column, tables: PrefixTables) -> tuple[UInt8s, Int64s]:
        from tokzip_core.kernels.prefix import encode_rows

        t = tables

        def write(starts: Int64s, ends: Int64s, *out: Any) -> None:
            known = (t.entries, t.ids, t.id_entries, np.uint64(t.escape))
            if not encode_rows(column.values, starts, ends, *known, *out):
                raise InvalidTokensError(f"an id over {MAX_ID}")

        return encode_pieces(column, 8, write)

    def decode(self, column: Column, tables: PrefixTables) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.prefix import decode_rows

        t = tables
        load_of = (0,) * (3 if t.triple else 2)

        def read(data: Any, starts: Int64s, ends: Int64s, *out: Any) -> Any:
            known = (t.slot_lengths, t.slot_ranks, t.tokens, t.ids, t.id_entries)
            return decode_rows(data, starts, ends, *known, t.shortest, load_of, *out)

        size = int((column.ends - column.starts).sum())
        return decode_pieces(column, int(9 * size / t.mean) + 1024, read, _FAULTS)
