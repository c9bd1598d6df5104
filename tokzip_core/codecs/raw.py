"""Codec `raw`: each id in whole bytes, as many as the codebook says; the baseline. Imports columns, models, kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.codecs.codec import Codec
from tokzip_core.codecs.pieces import decode_pieces, encode_pieces
from tokzip_core.columns import Column, Int32s, Int64s, UInt8s
from tokzip_core.errors import CorruptCodebookError
from tokzip_core.models.order0 import Order0

_FAULTS = {1: "it is cut short", 2: "an id over 2^31 - 1", 3: "an id in 4 bytes that needs fewer"}


class Raw(Codec):
    name = "raw"
    version = 1
    max_body = 1

    def model(self) -> Order0:
        return Order0()

    def train(self, model: Order0) -> tuple[bytes, float]:
        most = int(model.ids[-1]) if model.ids.size else 0
        width = next((w for w in (1, 2, 3) if most < 256**w - 1), 4)
        return bytes([width]), 8.0 * width * (model.ids.size > 0)

    def tables(self, body: bytes) -> int:
        """The bytes an id, 1 to 4. All ones, in fewer than 4, announce an id in 4 bytes more."""
        if len(body) != 1 or not 1 <= body[0] <= 4:
            raise CorruptCodebookError(f"a width of {body.hex() or 'no'} bytes an id, expected 1 to 4")
        return body[0]

    def encode(self, column: Column, tables: int) -> tuple[UInt8s, Int64s]:
        from tokzip_core.kernels.raw import encode_rows

        def write(*piece: Any) -> None:
            encode_rows(column.values, np.uint64(tables), *piece)

        return encode_pieces(column, 8, write)

    def decode(self, column: Column, tables: int) -> tuple[Int32s, Int64s]:
        from tokzip_core.kernels.raw import decode_rows

        def read(*piece: Any) -> Any:
            return decode_rows(np.uint64(tables), *piece)

        return decode_pieces(column, int((column.ends - column.starts).sum()) // tables, read, _FAULTS)
