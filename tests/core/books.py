"""Codebooks with code lengths chosen by hand, mutations, the reader that docs/FORMAT.md prints. For the tests here."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import tokzip_core as tz
from tokzip_core.coders.varint import encode_varints

ESCAPE = 2**31  # the escape among the reader's codes
FORMAT = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text("utf-8")


def wrap(body: bytes, size: int | None = None, codec: bytes = b"huffman", version: int = 1) -> bytes:
    """Codebook bytes around a body."""
    head = b"TKZC\x01" + bytes([len(codec)]) + codec
    return head + struct.pack("<HII", version, 0, len(body) if size is None else size) + zstandard.compress(body)


def body(lengths: dict[int, int], escape: int | None = None) -> bytes:
    """The body of `huffman` for {id: code length}; the escape is as long as the longest unless given."""
    ids = np.array(sorted(lengths), np.int64)
    escape = max(lengths.values(), default=1) if escape is None else escape
    gaps = np.diff(ids, prepend=-1) - 1
    packed = struct.pack("<I", ids.size) + encode_varints(gaps.astype(np.uint32))
    return packed + bytes([*(lengths[int(i)] for i in ids), escape])


def book(lengths: dict[int, int], escape: int | None = None) -> tz.Codebook:
    return tz.Codebook.from_bytes(wrap(body(lengths, escape)))


def mutations(blobs: list[bytes], rng: np.random.Generator, n: int) -> list[bytes]:
    """`n` times one of `blobs` with bits flipped, cut short, or with bytes added."""
    mutated = []
    for _ in range(n):
        blob = bytearray(blobs[rng.integers(len(blobs))])
        for _ in range(rng.integers(1, 4)):
            kind = rng.integers(4)
            if kind == 0 and blob:
                blob[rng.integers(len(blob))] ^= 1 << rng.integers(8)
            elif kind == 1:
                del blob[rng.integers(len(blob) + 1) :]
            elif kind == 2:
                blob += rng.bytes(rng.integers(1, 9))
            else:
                blob[rng.integers(len(blob) + 1) :] = bytes(rng.integers(0, 12))
        mutated.append(bytes(blob))
    return mutated


def reader() -> dict[str, Any]:
    """The names that the Python reader printed in FORMAT.md defines."""
    names: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)
    exec(compile(code, "docs/FORMAT.md", "exec"), names)
    return names
