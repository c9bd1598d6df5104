"""Codec `arithmetic`: the order-0 model coded by rANS. Imports columns, models, coders, kernels."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.codecs.pieces import decode_pieces, encode_pieces
from tokzip_core.coders.rans import MAX_IDS, TOTAL, RansTables, build_tables, choose_classes
from tokzip_core.coders.varint import decode_ids, decode_varints, encode_ids, encode_varints
from tokzip_core.columns import Column, Int32s, Int64s, UInt8s
from tokzip_core.errors import CorruptCodebookError
from tokzip_core.models.order0 import Order0

_FAULTS = {
    1: "its number's last byte is zero",
    2: "a symbol that the codebook does not assign",
    3: "an escaped id that has a symbol",
}


class Arithmetic(Codec):
    name = "arithmetic"
    version = 1
    max_body = 6 + 3 * TOTAL + 7 * (MAX_IDS + 1)

    def model(self) -> Order0:
        return Order0()

    def train(self, model: Order0) -> tuple[bytes, float]:
        order = np.lexsort((model.ids, -model.counts))[:MAX_IDS]
        counts = np.append(model.counts[order], np.int64(1))  # the escape: as rare as the rarest
        frequencies, extras, firsts = choose_classes(counts)
        classes = np.repeat(np.arange(firsts.size), np.diff(firsts, append=counts.size))
        by_id = np.argsort(model.ids[order])
        body = struct.pack("<IH", by_id.size, firsts.size) + frequencies.astype("<u2").tobytes()
        body += extras.astype(np.uint8).tobytes() + encode_ids(model.ids[order][by_id])
        body += encode_varints(classes[np.append(by_id, by_id.size)].astype(np.uint32))
        bits = (12 + extras - np.log2(frequencies))[classes]
        return body, float((counts * bits)[:-1].sum() / max(1, counts[:-1].sum()))

    def tables(self, body: bytes) -> RansTables:
        if len(body) < 6:
            raise CorruptCodebookError("a body of less than 6 bytes")
        n, k = struct.unpack_from("<IH", body)
        if n > MAX_IDS or len(body) < 6 + 3 * k + 2 * n:
            raise CorruptCodebookError(f"{n} ids, {k} classes in {len(body)} bytes; at most {MAX_IDS} are allowed")
        frequencies = np.frombuffer(body, "<u2", k, 6).astype(np.int64)
        extras = np.frombuffer(body, np.uint8, k, 6 + 2 * k).astype(np.int64)
        varints = body[6 + 3 * k :]
        ends = np.flatnonzero(np.frombuffer(varints, np.uint8) < 128) + 1
        cut = int(ends[n - 1]) if 0 < n <= ends.size else 0
        ids = decode_ids(varints[:cut], n)
        classes = decode_varints(varints[cut:], n + 1).astype(np.int64)
        return build_tables(frequencies, extras, ids, classes)

    def encode(self, column: Column, tables: RansTables) -> tuple[UInt8s, Int64s]:
        from tokzip_core.kernels.rans import encode_rows

        t = tables

        def write(*piece: Any) -> None:
            encode_rows(column.values, t.symbols, t.ids, t.id_symbols, np.uint64(t.escape), *piece)

        # a token takes up to 10 bytes, and the row that is being written lies in `out` twice
        return encode_pieces(column, 20, write)

    def decode(self, column: Column, tables: RansTables) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.rans import decode_rows

        t = tables

        def read(data: Any, starts: Int64s, ends: Int64s, *out: Any) -> Any:
            return decode_rows(data, starts, ends, t.slots, t.tokens, t.ids, t.id_symbols, *out)

        return decode_pieces(column, 2 * int((column.ends - column.starts).sum()), read, _FAULTS)
