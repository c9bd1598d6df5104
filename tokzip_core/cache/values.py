"""How vectors are stored in a cache: exactly, or smaller and nearly so. Imports numpy, pyarrow, and kernels when used.

A value is a head, and what `kernels.vector_codes.encode` makes of the vector's numbers. The head's first byte is
coding | (dimension mod 64) << 2. Codings: 0 float32 (the numbers follow as they are, little-endian), 1 lossless
(float32), 2 fp16 (IEEE 754 binary16, rounded to nearest), 3 int8 (2 bytes follow: the upper half of a float32, the
scale, which is the largest magnitude / 127 or a little more; the numbers are scale * integer, rounded to nearest). A
vector that its coding cannot hold (infinite or not a number, beyond binary16, too small for a scale, codes too long) is
stored as float32.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokzip_core.cache.layer import CacheError, array_of, flat

Vectors = npt.NDArray[np.float32]
CODINGS = ("float32", "lossless", "fp16", "int8")
_LAYOUTS = {"lossless": (23, 8), "fp16": (10, 5), "int8": (0, 0)}  # bits of mantissa and exponent
_HEADS = {"float32": 1, "lossless": 1, "fp16": 1, "int8": 3}
_VERSION = 1
_LEAST_SCALE = 2.0**-120  # below, float32 has few bits for it


class ValueCoding:
    """One of CODINGS. `exact`: what is decoded has the bits of what was encoded."""

    def __init__(self, name: str) -> None:
        """Raises CacheError for a name that is none of CODINGS."""
        if name not in CODINGS:
            raise CacheError(f"cache values {name!r}: expected one of {', '.join(CODINGS)}")
        self.name = name
        self.exact = name in ("float32", "lossless")

    @property
    def mask(self) -> bytes:
        """32 bytes that a key is XORed with, so that no coding ever reads the values of another."""
        return hashlib.blake2b(f"tokzip cache value {_VERSION}: {self.name}".encode(), digest_size=32).digest()

    def encode(self, vectors: Vectors) -> pa.BinaryArray:
        """Vectors, float32 `[n, d]`, as one value each."""
        vectors = np.ascontiguousarray(vectors, "<f4")
        if self.name == "float32" or not vectors.size:
            return _plain(vectors)
        from tokzip_core.kernels import vector_codes

        numbers, scales, fits = self._numbers(vectors)
        head, (n, d) = _HEADS[self.name], vectors.shape
        out = np.empty(n * (head + 8 + 7 * d) + vector_codes.SLACK, np.uint8)
        ends = np.empty(n, np.int64)
        coded = np.zeros(n, np.bool_)
        vector_codes.encode(numbers, *_LAYOUTS[self.name], head, out, ends, coded)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        out[starts] = _first_byte(self.name, d)
        if scales is not None:
            out[starts[:, None] + np.arange(1, 3)] = scales.view(np.uint8).reshape(-1, 4)[:, 2:]
        fits &= coded & (ends - starts <= 1 + 4 * d)
        values = array_of(out, ends, np.ones(n, np.bool_))
        if fits.all():
            return values
        order = np.arange(n)
        order[~fits] = n + np.arange(int((~fits).sum()))
        return pa.concat_arrays([values, _plain(vectors[~fits])]).take(pa.array(order))

    def decode(self, values: pa.BinaryArray, dimension: int) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Vectors, float32 `[n, dimension]`; and which are good: not null, and written by `encode` for this dimension.

        Safe for any bytes. What is not good has no meaning.
        """
        data, starts, ends = flat(values)
        kinds = np.full(len(values), -1)
        there = np.asarray(values.is_valid()) & (ends > starts)
        kinds[there] = data[starts[there]]
        vectors = np.empty((len(values), dimension), "<f4")
        good = (kinds == _first_byte("float32", dimension)) & (ends - starts == 1 + 4 * dimension)
        if good.any():
            size = 1 + 4 * dimension
            rows = np.lib.stride_tricks.sliding_window_view(data, size)[starts[good]]
            vectors[good] = np.ascontiguousarray(rows[:, 1:]).view("<f4")
        if self.name != "float32":
            coded = (kinds == _first_byte(self.name, dimension)) & (ends - starts > _HEADS[self.name])
            if coded.any():
                self._decode(data, starts, ends, vectors, coded)
            good |= coded
        return vectors, good

    def _decode(self, data: Any, starts: Any, ends: Any, vectors: Vectors, coded: npt.NDArray[np.bool_]) -> None:
        from tokzip_core.kernels import vector_codes

        begin, end = int(starts[coded].min()), int(ends[coded].max())
        padded = np.empty(end - begin + vector_codes.SLACK, np.uint8)
        padded[: end - begin] = data[begin:end]
        starts, ends = starts - begin, ends - begin
        scales = np.zeros(len(starts), np.float32)
        if self.name == "int8":
            halves = padded[starts[coded, None] + np.arange(1, 3)].view("<u2")[:, 0]
            scales[coded] = (halves.astype(np.uint32) << 16).view(np.float32)
        head = _HEADS[self.name]
        vector_codes.decode(padded, starts + head, ends, *_LAYOUTS[self.name], scales, vectors, coded)

    def _numbers(self, vectors: Vectors) -> tuple[npt.NDArray[np.uint32], Vectors | None, npt.NDArray[np.bool_]]:
        """The numbers to code, as words; the scales, if any; and which vectors they stand for."""
        if self.name == "lossless":
            return vectors.view("<u4"), None, np.ones(len(vectors), np.bool_)
        if self.name == "fp16":
            with np.errstate(over="ignore"):
                halves = vectors.astype("<f2")
            return halves.view("<u2").astype(np.uint32), None, np.isfinite(halves).all(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            exact = np.abs(vectors).max(1, keepdims=True) / np.float32(127)
            scales = (exact.view(np.uint32) + 0xFFFF & 0xFFFF0000).view(np.float32)  # rounded up
            fits = (np.isfinite(exact) & ((exact == 0) | (exact > _LEAST_SCALE)))[:, 0]
            scaled = np.where(fits[:, None] & (scales > 0), vectors / scales, 0)
        return np.rint(scaled).astype("<i4").view(np.uint32), scales, fits


def _first_byte(coding: str, dimension: int) -> int:
    return CODINGS.index(coding) | (dimension & 63) << 2


def _plain(vectors: Vectors) -> pa.BinaryArray:
    size = 1 + 4 * vectors.shape[1]
    rows = np.zeros((len(vectors), size), np.uint8)
    rows[:, 0] = _first_byte("float32", vectors.shape[1])
    rows[:, 1:] = vectors.view(np.uint8)
    return array_of(rows.reshape(-1), np.arange(1, len(vectors) + 1) * size, np.ones(len(vectors), np.bool_))
