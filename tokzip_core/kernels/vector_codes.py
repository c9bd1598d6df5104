"""Numbers of vectors as a code of their magnitude's power of two and plain bits for the rest. Imports kernels only.

The powers of two ("classes") of a vector's components lie close together: for normally distributed components half as
many in each class below the commonest. So a class is coded by its distance to a class that the vector names,
with a prefix code made for that distribution (rank: bits, in the order that they are read): 0: 00, 1: 01, 2: 10,
3: 110, 4: 1110, …, 12: eleven ones and a zero; twelve ones: any class, as 8 bits. Ranks are those of DISTANCES.
"""

from __future__ import annotations

import numpy as np
from numba import float32, int64, uint32, uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.words import load, store

DISTANCES = np.array([0, 1, -1, -2, -3, -4, 2, -5, -6, -7, 3, -8, -9], np.int64)
_ONES = 12  # of the escape
_RANKS = np.full(512, len(DISTANCES), np.int64)  # by distance + 256
_RANKS[DISTANCES + 256] = np.arange(len(DISTANCES))
_LENGTHS = np.array([2, 2, 2, *range(3, 13), _ONES + 8])  # by rank
_WORDS = np.array([0b00, 0b10, 0b01, *[(1 << n - 1) - 1 for n in range(3, 13)], (1 << _ONES) - 1], np.uint64)
# By the next 12 bits, the codes that these begin with, up to 5: (distance + 128) of code i << 8 * i, how many bits they
# take << 40, and how many they are << 48; 0 of them before an escape.
_NEXT = np.zeros(1 << _ONES, np.uint64)


def _fill(bits: int, used: int, codes: list[int]) -> None:
    """Set the entries of all 12 bits that begin with `codes`, which are the lowest `used` of `bits`."""
    packed = sum(distance + 128 << 8 * i for i, distance in enumerate(codes))
    _NEXT[bits :: 1 << used] = packed | used << 40 | len(codes) << 48
    for word, length, distance in zip(_WORDS.tolist(), _LENGTHS.tolist(), DISTANCES.tolist(), strict=False):
        if len(codes) < 5 and used + length <= _ONES:
            _fill(bits | word << used, used + length, [*codes, distance])


_fill(0, 0, [])

_POWERS = np.ldexp(np.float32(1), np.arange(32) - 25).astype(np.float32)  # of the last bit of a binary16
SLACK = 16  # bytes behind what is written, and behind what is read


@kernel
def _split(word, mantissa, exponent):  # type: ignore[no-untyped-def]
    """Class, other bits, and number of these: of a float of so many bits, or (exponent = 0) of a signed integer."""
    if exponent:
        sign = word >> uint64(mantissa + exponent)
        low = word & (uint64(1) << uint64(mantissa)) - uint64(1)
        return (
            int64(word >> uint64(mantissa) & (uint64(1) << uint64(exponent)) - uint64(1)),
            (low | sign << uint64(mantissa)),
            uint64(mantissa + 1),
        )
    value = int64(word << uint64(32)) >> 32
    size, kind = abs(value), 0
    while size >> kind:
        kind += 1
    if not kind:
        return 0, uint64(0), uint64(0)
    return kind, uint64(size - (1 << kind - 1)) << uint64(1) | uint64(value < 0), uint64(kind)


@kernel
def encode(words, mantissa, exponent, head, out, ends, coded):  # type: ignore[no-untyped-def]
    """Each row of `words` (uint32 `[n, d]`) as: 1 byte, the class that distances count from; 2 bytes, how many bytes of
    class codes follow; these; the other bits: of float32 their lowest bytes, the next, and the highest, else bit by
    bit. `head` bytes before it are left to the caller.

    out: uint8, with room for `head + 8 + 7 * d` bytes a row and SLACK. ends[i]: where row i ends. Where 2 bytes cannot
    say how long the class codes would be, coded[i] is false, and the row a mere beginning, which `decode` refuses.
    """
    at, n = uint64(0), uint64(words.shape[1])
    counts = np.empty(256, np.int64)
    for row in range(words.shape[0]):
        counts[:] = 0
        for word in words[row]:
            counts[_split(uint64(word), mantissa, exponent)[0]] += 1
        best, least = 0, int64(1) << 60
        for center in range(256):
            if counts[center] * 8 < words.shape[1]:
                continue
            bits = 0
            for kind in range(256):
                bits += counts[kind] * _LENGTHS[_RANKS[kind - center + 256]]
            if bits < least:
                best, least = center, bits
        if least == int64(1) << 60:  # no class has an eighth of them
            least = 20 * words.shape[1]
        size = uint64((least + 7) // 8)
        at += uint64(head)
        coded[row] = uint64(0) < size < uint64(1 << 16)
        if not coded[row]:
            size = uint64(0)
        out[at], out[at + uint64(1)], out[at + uint64(2)] = best, size & uint64(255), size >> uint64(8)
        at += uint64(3)
        if size:
            codes, rests = at * uint64(8), (at + size) * uint64(8)
            for i in range(at, at + size + uint64(words.shape[1] * 4 + 8)):
                out[i] = 0
            for i in range(n):
                kind, rest, width = _split(uint64(words[row, i]), mantissa, exponent)
                rank = _RANKS[kind - best + 256]
                code = _WORDS[rank]
                if rank == len(DISTANCES):
                    code |= uint64(kind) << uint64(_ONES)
                _put(out, codes, code)
                codes += uint64(_LENGTHS[rank])
                if mantissa == 23:
                    for plane in range(uint64(3)):
                        out[at + size + plane * n + i] = rest >> plane * uint64(8) & uint64(255)
                else:
                    _put(out, rests, rest)
                rests += width
            at = rests + uint64(7) >> uint64(3)
        ends[row] = at


@kernel
def _put(out, at, bits):  # type: ignore[no-untyped-def]
    byte = at >> uint64(3)
    store(out, byte, load(out, byte) | bits << (at & uint64(7)))


@kernel
def _classes(data, at, end, center, kinds, n):  # type: ignore[no-untyped-def]
    """Read n classes, less the one that distances count from, plus 128, into `kinds` (uint8, n + 8 long); False if the
    bits from `at` to `end` are too few."""
    done = uint64(0)
    while done < n:
        if at >= end:
            return False
        word = load(data, at >> uint64(3)) >> (at & uint64(7))
        for _ in range(4):  # of at most 12 bits, and a load has 57
            found = _NEXT[word & uint64((1 << _ONES) - 1)]
            count, used = found >> uint64(48), found >> uint64(40) & uint64(255)
            if not count or done >= n:
                break
            store(kinds, done, found)
            word >>= used
            at += used
            done += count
        if done < n and not _NEXT[word & uint64((1 << _ONES) - 1)] >> uint64(48):
            word = load(data, at >> uint64(3)) >> (at & uint64(7))
            kinds[done] = (word >> uint64(_ONES)) - center & uint64(255)
            at += uint64(_ONES + 8)
            done += uint64(1)
    return True


@kernel
def decode(data, starts, ends, mantissa, exponent, scales, vectors, good):  # type: ignore[no-untyped-def]
    """Undo `encode` for the rows `data[starts[i]:ends[i]]` where good[i], made false for bytes too few or too many.

    data: uint8, with SLACK readable bytes after the last row. vectors: float32 `[n, d]`, or uint32 of the same bits:
    floats of 23 bits of mantissa as they are, those of 10 widened, and integers times scales[i].
    """
    n = uint64(vectors.shape[1])
    kinds = np.zeros(n + uint64(8), np.uint8)
    floats, words = vectors, vectors.view(np.uint32)
    width = uint64(mantissa + 1)
    for row in range(starts.size):
        at, end = uint64(starts[row]), uint64(ends[row])
        if not good[row] or at + uint64(3) > end:
            good[row] = False
            continue
        center = uint64(data[at]) - uint64(128)
        size = uint64(data[at + uint64(1)]) | uint64(data[at + uint64(2)]) << uint64(8)
        at += uint64(3)
        rests = (at + size) * uint64(8)
        good[row] = size > uint64(0) and at + size <= end and _classes(data, at * uint64(8), rests, center, kinds, n)
        if not good[row]:
            continue
        bits = n * width
        if not exponent:
            bits = uint64(0)
            for i in range(n):
                bits += kinds[i] + center & uint64(31)
        if rests + bits + uint64(7) >> uint64(3) != end:
            good[row] = False
        elif mantissa == 23:
            at = rests >> uint64(3)
            low, middle, high = data[at : at + n], data[at + n : at + n + n], data[at + n + n : at + n + n + n]
            out, base = words[row], np.uint8(center)
            for i in range(n):
                kind, top = uint32(np.uint8(kinds[i] + base)), uint32(high[i])
                mantissa_bits = uint32(low[i]) | uint32(middle[i]) << uint32(8) | (top & uint32(0x7F)) << uint32(16)
                out[i] = mantissa_bits | kind << uint32(23) | (top >> uint32(7)) << uint32(31)
        elif exponent:
            for i in range(n):
                rest = load(data, rests >> uint64(3)) >> (rests & uint64(7))
                kind = int64(kinds[i] + center & uint64(31))
                low = int64(rest & uint64(0x3FF))
                value = float32(low + 1024) * _POWERS[kind] if kind else float32(low) * _POWERS[1]
                floats[row, i] = -value if rest & uint64(0x400) else value
                rests += width
        else:
            for i in range(n):
                kind = kinds[i] + center & uint64(31)
                rest = load(data, rests >> uint64(3)) >> (rests & uint64(7)) & (uint64(1) << kind) - uint64(1)
                size = (uint64(1) << kind | rest) >> uint64(1)
                value = scales[row] * float32(int64(size))
                floats[row, i] = -value if rest & uint64(1) else value
                rests += kind
