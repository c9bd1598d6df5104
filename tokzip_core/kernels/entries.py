"""Cache entries: their checksums, an index of their keys, and reading them out of mapped files. Imports kernels only.

A key is 32 bytes of a cryptographic digest, so that any of its bits are as good as a hash; here, 4 words of 64 bits.
The checksum of an entry is XXH64 (the xxHash specification, version 0.1.1) of its value, seeded with the key's last
word. Addresses are uint64; who calls sees to it that what is mapped there stays mapped.
"""

from __future__ import annotations

from numba import int64, uint32, uint64

from tokzip_core.kernels import kernel
from tokzip_core.kernels.addresses import byte_at, copy, word_at

_P1, _P2, _P3 = uint64(0x9E3779B185EBCA87), uint64(0xC2B2AE3D27D4EB4F), uint64(0x165667B19E3779F9)
_P4, _P5 = uint64(0x85EBCA77C2B2AE63), uint64(0x27D4EB2F165667C5)

# A slot of the index: a tag (24 bits of the key, never 0) over 40 bits of place. Beside it its home (the next 32 bits).
EMPTY, REMOVED = 0, 1
PLACE_BITS = 40
_LOW = (1 << PLACE_BITS) - 1

MAX_VALUE_BYTES = 1 << 20  # of a value in a mapped file: more is damage

# What `lengths` says instead of a length.
OTHER_KEY, OUT_OF_FILE = -1, -2


@kernel
def _rotated(x, bits):  # type: ignore[no-untyped-def]
    return x << uint64(bits) | x >> uint64(64 - bits)


@kernel
def _round(lane, word):  # type: ignore[no-untyped-def]
    return _rotated(lane + word * _P2, 31) * _P1


@kernel
def xxh64(at, end, seed):  # type: ignore[no-untyped-def]
    """XXH64 of the bytes from address `at` to `end`."""
    size = end - at
    if size >= uint64(32):
        a, b, c, d = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
        while at + uint64(32) <= end:
            a = _round(a, word_at(at))
            b = _round(b, word_at(at + uint64(8)))
            c = _round(c, word_at(at + uint64(16)))
            d = _round(d, word_at(at + uint64(24)))
            at += uint64(32)
        h = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
        for lane in (a, b, c, d):
            h = (h ^ _round(uint64(0), lane)) * _P1 + _P4
    else:
        h = seed + _P5
    h += size
    while at + uint64(8) <= end:
        h = _rotated(h ^ _round(uint64(0), word_at(at)), 27) * _P1 + _P4
        at += uint64(8)
    if at + uint64(4) <= end:
        four = uint64(0)
        for i in range(uint64(4)):
            four |= byte_at(at + i) << uint64(8) * i
        h = _rotated(h ^ four * _P1, 23) * _P2 + _P3
        at += uint64(4)
    while at < end:
        h = _rotated(h ^ byte_at(at) * _P5, 11) * _P1
        at += uint64(1)
    h = (h ^ h >> uint64(33)) * _P2
    h = (h ^ h >> uint64(29)) * _P3
    return h ^ h >> uint64(32)


@kernel
def checksums(keys, data, starts, ends, out):  # type: ignore[no-untyped-def]
    """out[i]: the checksum of the value `data[starts[i]:ends[i]]` (uint8, contiguous) under keys[i]."""
    begin = uint64(data.ctypes.data)
    for i in range(starts.size):
        out[i] = xxh64(begin + uint64(starts[i]), begin + uint64(ends[i]), keys[i, 3])


@kernel
def _slot(slots, homes, tag, home):  # type: ignore[no-untyped-def]
    """Where the key of this tag and home is, or the empty slot that ends the search; slots: a power of two of them."""
    mask = uint64(slots.size - 1)
    at = uint64(home) & mask
    while slots[at] != uint64(EMPTY) and (slots[at] >> uint64(PLACE_BITS) != tag or homes[at] != home):
        at = at + uint64(1) & mask
    return at


@kernel
def _parts(word):  # type: ignore[no-untyped-def]
    """A key's first word as its tag, which is not 0, and its home."""
    tag = word & uint64(0xFFFFFF)
    return uint64(1) if tag == uint64(0) else tag, uint32(word >> uint64(24) & uint64(0xFFFFFFFF))


@kernel
def find(slots, homes, keys, places):  # type: ignore[no-untyped-def]
    """places[i] (int64): where the entry of keys[i] is, unless it is that of a key alike in 56 bits; or -1."""
    for i in range(keys.shape[0]):
        tag, home = _parts(keys[i, 0])
        slot = slots[_slot(slots, homes, tag, home)]
        places[i] = -1 if slot == uint64(EMPTY) else int64(slot & uint64(_LOW))


@kernel
def insert(slots, homes, keys, place):  # type: ignore[no-untyped-def]
    """Let keys[i] be at `place + i`, wherever it was before; returns how many empty slots that took."""
    taken = 0
    for i in range(keys.shape[0]):
        tag, home = _parts(keys[i, 0])
        at = _slot(slots, homes, tag, home)
        taken += slots[at] == uint64(EMPTY)
        slots[at] = tag << uint64(PLACE_BITS) | uint64(place + i)
        homes[at] = home
    return taken


@kernel
def reinsert(slots, homes, old_slots, old_homes):  # type: ignore[no-untyped-def]
    """Put what is neither empty nor removed into a new table; returns how much that is."""
    count = 0
    for i in range(old_slots.size):
        if old_slots[i] > uint64(REMOVED):
            at = _slot(slots, homes, old_slots[i] >> uint64(PLACE_BITS), old_homes[i])
            slots[at], homes[at] = old_slots[i], old_homes[i]
            count += 1
    return count


@kernel
def remove(slots, homes, keys):  # type: ignore[no-untyped-def]
    for i in range(keys.shape[0]):
        tag, home = _parts(keys[i, 0])
        at = _slot(slots, homes, tag, home)
        if slots[at] != uint64(EMPTY):
            slots[at] = uint64(REMOVED)


@kernel
def drop(slots, first, last):  # type: ignore[no-untyped-def]
    """Remove every entry at a place from `first` to `last`."""
    for i in range(slots.size):
        place = slots[i] & uint64(_LOW)
        if slots[i] > uint64(REMOVED) and uint64(first) <= place <= uint64(last):
            slots[i] = uint64(REMOVED)


@kernel
def lengths(keys, files, rows, maps, out):  # type: ignore[no-untyped-def]
    """out[i] (int64): the bytes of the value of keys[i], in record rows[i] of file files[i]; OTHER_KEY; or OUT_OF_FILE.

    maps: uint64[files, 4], of each file the address and number of its records, and the address and bytes of its values.
    A record is 5 words: the key's first 3, offset | length << 40, and the checksum, which tells the key's last.
    """
    for i in range(rows.size):
        out[i] = OTHER_KEY
        if files[i] < 0 or uint64(rows[i]) >= maps[files[i], 1]:
            continue
        record = maps[files[i], 0] + uint64(8 * 5) * uint64(rows[i])
        same = True
        for j in range(3):
            same &= word_at(record + uint64(8 * j)) == keys[i, j]
        if same:
            place = word_at(record + uint64(24))
            length = place >> uint64(PLACE_BITS)
            inside = length <= uint64(MAX_VALUE_BYTES) and (place & uint64(_LOW)) + length <= maps[files[i], 3]
            out[i] = length if inside else OUT_OF_FILE


@kernel
def read(keys, files, rows, maps, sizes, starts, out, good):  # type: ignore[no-untyped-def]
    """Copy value i to `out[starts[i]:][:sizes[i]]` where that is not negative; good[i]: has the copy its checksum?

    keys, files, rows, maps: as for `lengths`, which gave `sizes`.
    """
    begin = uint64(out.ctypes.data)
    for i in range(rows.size):
        if sizes[i] < 0:
            continue
        record = maps[files[i], 0] + uint64(8 * 5) * uint64(rows[i])
        offset, size = word_at(record + uint64(24)) & uint64(_LOW), uint64(sizes[i])
        if offset + size <= maps[files[i], 3]:
            to = begin + uint64(starts[i])
            copy(to, maps[files[i], 2] + offset, size)
            good[i] = xxh64(to, to + size, keys[i, 3]) == word_at(record + uint64(32))
