"""Codec `huffman-o1`: the order-1 model coded by a prefix-class code for each cluster of the token before.

Imports columns, models, coders, kernels.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.codecs.pieces import decode_pieces, encode_pieces
from tokzip_core.coders.prefix import choose_lengths, lengths_within
from tokzip_core.coders.prefix_order1 import (
    MAX_CELL_LENGTH,
    MAX_CELLS,
    MAX_CLUSTERS,
    MAX_IDS,
    MAX_PAIRS,
    Order1Tables,
    build_tables,
)
from tokzip_core.coders.varint import decode_ids, decode_varints, encode_ids
from tokzip_core.columns import MAX_ID, Column, Int32s, Int64s, UInt8s, UInt32s
from tokzip_core.errors import CorruptCodebookError, InvalidTokensError
from tokzip_core.models.order1 import Order1, cluster

_FAULTS = {
    1: "its last byte is zero",
    2: "a code that the codebook does not assign",
    3: "an escaped id that is known",
    4: "it ends in an escape",
}
_HEAD = struct.Struct("<IIIH")  # ids, cells, bytes of the ids, clusters


class HuffmanOrder1(Codec):
    name = "huffman-o1"
    version = 1
    checks_ids = True
    max_body = 1 << 25

    def model(self) -> Order1:
        return Order1()

    def train(self, model: Order1) -> tuple[bytes, float]:
        order0 = model.order0()
        kept = np.sort(np.lexsort((order0.ids, -order0.counts))[:MAX_IDS])
        ids, counts = order0.ids[kept], order0.counts[kept]
        clusters, left = cluster(model, ids, counts, MAX_PAIRS // max(1, ids.size))
        lost = model.tokens - int(clusters.counts.sum() + left.sum())  # ids beyond MAX_IDS
        shared, _ = _lengths(np.append(left + 1, lost + 1), None)
        bits = float(((left * shared[:-1]).sum()) + lost * (int(shared[-1]) + 31))
        sizes = np.bincount(clusters.cells >> 20, minlength=clusters.size)
        bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
        lengths, members = [], []
        for own, escapes in zip(map(slice, bounds, bounds[1:]), clusters.escaped, strict=False):
            some, spent = _lengths(np.append(clusters.counts[own], max(1, escapes)), MAX_CELL_LENGTH)
            lengths.append(some.tobytes())
            members.append(encode_ids((clusters.cells[own] & 0xFFFFF).astype(np.uint32)))
            bits += spent
        packed = encode_ids(ids)
        body = _HEAD.pack(ids.size, clusters.cells.size, len(packed), clusters.size) + packed
        body += shared.tobytes() + b"".join(lengths)
        body += clusters.of.astype("<u2").tobytes() + sizes.astype("<u4").tobytes()
        body += b"".join(members)
        return body, bits / max(1, model.tokens)

    def tables(self, body: bytes) -> Order1Tables:
        if len(body) < _HEAD.size:
            raise CorruptCodebookError(f"a body of {len(body)} bytes")
        n, cells, packed, k = _HEAD.unpack_from(body)
        fixed = _HEAD.size + packed + (n + 1) + (cells + k) + 2 * (n + 1) + 4 * k
        if n > MAX_IDS or cells > MAX_CELLS or k > MAX_CLUSTERS or n * k > MAX_PAIRS or len(body) < fixed + cells:
            raise CorruptCodebookError(f"{n} ids, {cells} cells and {k} clusters in a body of {len(body)} bytes")
        at = _HEAD.size
        ids = decode_ids(body[at : at + packed], n)
        at += packed
        shared = np.frombuffer(body, np.uint8, n + 1, at)
        lengths = np.frombuffer(body, np.uint8, cells + k, at + n + 1)
        at += n + 1 + cells + k
        contexts = np.frombuffer(body, "<u2", n + 1, at).astype(np.int64)
        sizes = np.frombuffer(body, "<u4", k, at + 2 * (n + 1)).astype(np.int64)
        if sizes.sum() != cells:
            raise CorruptCodebookError(f"clusters of {sizes.sum()} cells together, expected {cells}")
        members = _members(decode_varints(body[fixed:], cells), sizes)
        return build_tables(ids, contexts, shared, sizes, members, lengths)

    def encode(self, column: Column, tables: Order1Tables) -> tuple[UInt8s, Int64s]:
        from tokzip_core.kernels.prefix_order1 import encode_rows

        t = tables

        def write(*piece: Any) -> None:
            known = (t.ids, t.id_ranks, t.ranks)
            tables = (*known, t.cells, t.entries, t.escapes, t.shared, t.start)
            if not encode_rows(column.values, *tables, *piece):
                raise InvalidTokensError(f"an id over {MAX_ID}")

        return encode_pieces(column, 12, write)

    def decode(self, column: Column, tables: Order1Tables) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.prefix_order1 import decode_rows

        t = tables

        def read(data: Any, starts: Int64s, ends: Int64s, *out: Any) -> Any:
            known = (t.slots, t.symbols, t.tokens, t.ids, t.id_ranks)
            return decode_rows(data, starts, ends, *known, t.clusters, t.start, t.shortest, *out)

        return decode_pieces(column, 3 * int((column.ends - column.starts).sum()) // 2 + 64, read, _FAULTS)


def _lengths(weights: Int64s, most: int | None) -> tuple[UInt8s, int]:
    """Code lengths for `weights` in any order, of at most `most` bits, and the bits that all take."""
    order = np.argsort(-weights, kind="stable")
    lengths: UInt8s = np.empty(weights.size, np.uint8)
    lengths[order] = choose_lengths(weights[order]) if most is None else lengths_within(weights[order], most)[0]
    return lengths, int((lengths * weights).sum())


def _members(gaps: UInt32s, sizes: Int64s) -> Int64s:
    """The number of each cell's id: in a cluster the first, then each less the one before, less 1."""
    sums = np.cumsum(gaps.astype(np.int64) + 1)
    before = np.concatenate((np.zeros(1, np.int64), sums))[np.cumsum(sizes) - sizes]
    members: Int64s = sums - np.repeat(before, sizes) - 1
    return members
