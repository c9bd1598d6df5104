"""Bytes from anywhere: decoding returns tokens or raises an error of ours, and what it allocates is bounded."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from books import body, book, mutations, reader, wrap

import tokzip_core as tz

BOOKS = [
    book({}),
    book({0: 1}, 2),
    book({1: 1, 2: 2, 300: 8, 5: 9, 6: 9, 7: 10, 9: 19}),
    book({3: 2, 0: 26, 1: 27, 2: 27, 4: 27, 5: 8}),
    tz.train(pa.array([np.random.default_rng(6).zipf(1.3, 20_000) % 5_000])),
]


@pytest.mark.parametrize("codebook", BOOKS, ids=range(len(BOOKS)))
def test_mutated_blobs_are_refused_or_are_the_one_blob_of_their_tokens(codebook: tz.Codebook) -> None:
    rng = np.random.default_rng(7)
    rows = [rng.choice([0, 1, 2, 3, 5, 300, 4_999, 2**31 - 1], rng.integers(0, 20)).tolist() for _ in range(50)]
    blobs = [b.as_py() for b in tz.encode(pa.array(rows, pa.list_(pa.int32())), codebook).storage]
    names = reader()
    codes = names["read_codebook"](codebook.to_bytes())
    refused = 0
    for blob in mutations(blobs, rng, 1_500):
        column = pa.array([b"", blob])
        try:
            tokens = tz.decode(column, codebook)
        except tz.CorruptBlobError:
            refused += 1
            continue
        tokens.validate(full=True)
        assert len(tokens[1]) <= 8 * len(blob)
        assert tz.encode(tokens, codebook).storage.equals(column)
        assert names["decode"](blob, codes) == tokens[1].as_py()
    assert 0 < refused < 1_500


@pytest.mark.parametrize(
    ("blob", "fault"),
    [
        (b"\x01\x00", "its last byte is zero"),
        (b"\x00\x80", "a code that the codebook does not assign"),  # the slot of the end of row
        (b"\x02", "a code that the codebook does not assign"),  # a free slot
    ],
)
def test_each_fault_is_named(blob: bytes, fault: str) -> None:
    with pytest.raises(tz.CorruptBlobError, match=f"row 2 .*{fault}"):
        tz.decode(pa.array([b"", None, blob]), book({1: 1}, 2) if blob != b"\x02" else book({1: 3}))


def test_an_escaped_id_that_has_a_code_is_refused() -> None:
    (escaped,) = tz.encode(pa.array([[9]]), book({1: 1}, 2)).storage.to_pylist()
    other = book({9: 1}, 2)
    assert tz.encode(pa.array([[1]]), other).storage[0].as_py()[0] & 3 == escaped[0] & 3  # the same escape code
    with pytest.raises(tz.CorruptBlobError, match="an escaped id that has a code"):
        tz.decode(pa.array([escaped]), other)


@pytest.mark.parametrize("width", [np.int32, np.int64])
def test_mutated_offsets(width: Any) -> None:
    rng = np.random.default_rng(8)
    codebook = BOOKS[-1]
    storage = tz.encode(pa.array([[1, 2, 3], [4], [], [5, 6]] * 5), codebook).storage
    kind = pa.binary() if width is np.int32 else pa.large_binary()
    _, offsets, data = storage.cast(kind).buffers()
    good = np.frombuffer(offsets, width)[: len(storage) + 1]
    raised = 0
    for _ in range(500):
        bad = good.copy()
        bad[rng.integers(bad.size)] = rng.choice([-1, 0, 1, 3, data.size, data.size + 1, np.iinfo(width).max])
        try:
            column = pa.Array.from_buffers(kind, len(storage), [None, pa.py_buffer(bad), data])
        except pa.ArrowInvalid:  # Arrow looks at the last bound itself
            continue
        try:
            tokens = tz.decode(column, codebook)
        except tz.CorruptBlobError:
            raised += 1
        else:
            tokens.validate(full=True)
    assert raised > 100


def test_mutated_codebooks() -> None:
    rng = np.random.default_rng(9)
    data = BOOKS[-1].to_bytes()
    tokens = pa.array([np.arange(6_000)])
    expected = tz.encode(tokens, BOOKS[-1]).storage
    refused = 0
    for changed in mutations([data], rng, 2_000):
        changed = changed[:15] + data[15:19] + changed[19:]  # the expected size is information only
        try:
            codebook = tz.Codebook.from_bytes(changed)
        except (tz.CorruptCodebookError, tz.UnknownCodecError):
            refused += 1
        else:  # a bit that zstd does not use: the same codebook under another id
            assert tz.encode(tokens, codebook).storage.equals(expected)
    assert refused > 1_900


def test_mutated_bodies_are_refused_or_sound() -> None:
    """Under a correct frame: what is accepted must encode and decode."""
    rng = np.random.default_rng(10)
    sound = body({1: 2, 2: 2, 300: 8, 5: 9, 6: 9, 70_000: 10, 9: 19})
    tokens = pa.array([[1, 2, 300, 5, 6, 70_000, 9, 4, 0]])
    accepted = 0
    for changed in mutations([sound], rng, 2_000):
        try:
            codebook = tz.Codebook.from_bytes(wrap(changed))
        except tz.CorruptCodebookError:
            continue
        accepted += 1
        assert tz.decode(tz.encode(tokens, codebook), codebook).to_pylist() == tokens.to_pylist()
    assert 0 < accepted < 2_000


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "does not start with TKZC"),
        (b"TKZB\x01\x00", "does not start with TKZC"),
        (b"TKZC\x02\x00" + bytes(40), "format 2"),
        (b"TKZC\x01\xff", "cut short"),
        (wrap(b"", 0), "less than 5 bytes"),
        (wrap(body({1: 2}), 9), "in its frame"),
        (wrap(bytes(2**23)), "are allowed"),
        (wrap(body({1: 2}))[:-1], "does not decompress"),
        (wrap(body({1: 2})) + b"x", "does not decompress"),
        (wrap(struct.pack("<IB", 2**31, 1)), "2147483648 ids"),
        (wrap(body({1: 0})), "code lengths of 0"),
        (wrap(body({1: 28})), "code lengths of 28"),
        (wrap(body({1: 1, 2: 1})), "slots"),
        (wrap(struct.pack("<I", 1) + b"\xff\xff\xff\xff\x0f\x03\x03"), "over 2"),
        (wrap(struct.pack("<I", 1) + b"\x80\x80\x80\x80\x80\x01\x03\x03"), "more than 5 bytes"),
    ],
)
def test_codebooks_that_are_refused(data: bytes, fault: str) -> None:
    with pytest.raises(tz.CorruptCodebookError, match=fault):
        tz.Codebook.from_bytes(data)


def test_a_codec_of_the_future_is_named() -> None:
    with pytest.raises(tz.UnknownCodecError, match="'brand-new'"):
        tz.Codebook.from_bytes(wrap(b"", codec=b"brand-new"))
    with pytest.raises(tz.UnknownCodecError, match="version 2 is asked for"):
        tz.Codebook.from_bytes(wrap(b"", version=2))


def test_a_bomb_is_refused_by_its_declared_size() -> None:
    bomb = zstandard.compress(bytes(1 << 28))
    head = b"TKZC\x01\x07huffman"
    for declared in (1 << 28, 100):
        with pytest.raises(tz.CorruptCodebookError, match="are allowed"):
            tz.Codebook.from_bytes(head + struct.pack("<HII", 1, 0, declared) + bomb)
    assert hashlib.sha256(BOOKS[0].to_bytes()).hexdigest() == BOOKS[0].id
