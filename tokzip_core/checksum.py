"""The optional checksum that ends each row's blob. Imports columns and errors; kernels when used.

CRC_A of ISO/IEC 14443-3, annex B (in the catalogues CRC-16/ISO-IEC-14443-3-A): in rows of any length it finds every
flipped bit, every odd number of them, and whatever changes lie within 16 bits; of other damage it misses one case in
65,536.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokzip_core.columns import Bools, Column, Int64s, UInt8s, read_only
from tokzip_core.errors import CorruptBlobError

NAME = "crc-16/iso-iec-14443-3-a"  # in the column type's metadata
SIZE = 2  # bytes


def append_checksums(data: Any, ends: Int64s, valid: Bools | None) -> tuple[UInt8s, Int64s]:
    """Rows that lie one after the other in `data` (a buffer) with a checksum after each that is not null."""
    from tokzip_core.kernels import checksum as kernels

    starts, checked = np.concatenate((np.zeros(1, np.int64), ends))[:-1], _checked(ends.size, valid)
    out: UInt8s = np.empty(len(data) + SIZE * int(checked.sum()), np.uint8)
    out_ends = np.empty(ends.size, np.int64)
    kernels.append_checksums(read_only(np.frombuffer(data, np.uint8)), starts, ends, checked, out, out_ends)
    return out, out_ends


def strip_checksums(column: Column) -> Column:
    """The blobs without their checksums; raises CorruptBlobError naming the first row whose checksum is wrong."""
    from tokzip_core.kernels import checksum as kernels

    checked = _checked(len(column), column.valid)
    wrong = int(kernels.first_wrong(column.values, column.starts, column.ends, checked))
    if wrong >= 0:
        raise CorruptBlobError(f"row {wrong} is damaged: its checksum does not match")
    return Column(column.values, column.starts, column.ends - SIZE * checked, column.valid)


def _checked(n: int, valid: Bools | None) -> Bools:
    checked: Bools = read_only(np.ones(n, np.bool_) if valid is None else valid)
    return checked
