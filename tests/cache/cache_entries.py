"""Keys and values for the tests of the cache, made from numbers."""

from __future__ import annotations

import random

import pyarrow as pa

MB = 1 << 20


def keys(*numbers: int) -> pa.FixedSizeBinaryArray:
    """Keys scattered like digests."""
    return pa.array([random.Random(n).randbytes(32) for n in numbers], pa.binary(32))


def values(*numbers: int, size: int = 1536) -> pa.BinaryArray:
    return pa.array([random.Random(-n - 1).randbytes(size) for n in numbers], pa.binary())
