"""Whole arrays of LEB128 varints: 7 bits a byte, lowest first, a set high bit where more follow. Imports numpy."""

from __future__ import annotations

import numpy as np

from tokzip_core.columns import MAX_ID, UInt32s
from tokzip_core.errors import CorruptCodebookError


def encode_varints(values: UInt32s) -> bytes:
    """The varints of uint32 `values`, one after the other."""
    shifts = np.arange(0, 35, 7, dtype=np.uint64)
    groups = values.astype(np.uint64)[:, None] >> shifts  # [n, 5]
    more = (groups >> np.uint64(7)) > 0
    kept = np.column_stack((np.ones(values.size, bool), more[:, :-1]))
    bytes_of = (groups & np.uint64(127)) | (more.astype(np.uint64) << np.uint64(7))
    return bytes(bytes_of[kept].astype(np.uint8))


def decode_varints(data: bytes, n: int) -> UInt32s:
    """The `n` uint32 values that `data` holds and nothing else; raises CorruptCodebookError."""
    raw = np.frombuffer(data, np.uint8)
    lasts = np.flatnonzero(raw < 128)
    if lasts.size != n or (raw.size and raw[-1] >= 128):
        raise CorruptCodebookError(f"expected {n} varints, found {lasts.size}")
    firsts = np.concatenate((np.zeros(1, np.int64), lasts[:-1] + 1)) if n else lasts
    sizes = lasts - firsts + 1
    if n and sizes.max() > 5:
        raise CorruptCodebookError("a varint of more than 5 bytes")
    values = np.zeros(n, np.uint64)
    for i in range(5):
        held = sizes > i
        values[held] |= (raw[firsts[held] + i] & np.uint64(127)) << np.uint64(7 * i)
    if n and values.max() >= 1 << 32:
        raise CorruptCodebookError("a varint over 32 bits")
    return values.astype(np.uint32)


def encode_ids(ids: UInt32s) -> bytes:
    """Rising uint32 `ids`: the first, then each less the one before, less 1."""
    gaps = np.diff(ids, prepend=np.uint32(0)) - (np.arange(ids.size) > 0)
    return encode_varints(gaps.astype(np.uint32))


def decode_ids(data: bytes, n: int) -> UInt32s:
    """The `n` ids that `data` holds and nothing else; raises CorruptCodebookError, also for an id over 2^31 - 1."""
    ids = np.cumsum(decode_varints(data, n).astype(np.uint64)) + np.arange(n, dtype=np.uint64)
    if n and ids[-1] > MAX_ID:
        raise CorruptCodebookError(f"an id of {ids[-1]}, over 2^31 - 1")
    return ids.astype(np.uint32)
