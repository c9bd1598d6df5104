"""What is special to single codecs: their faults by name, and the sizes they are there for."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from books import body, wrap

import tokzip_core as tz
from tokzip_core.coders.varint import encode_varints
from tokzip_core.columns import token_column
from tokzip_core.models import order1

LISTS = pa.list_(pa.int32())
BASE = 1_000


def rle(inner: bytes = b"\x02", codec: bytes = b"rle", pad: int = 0, fill: int = 40) -> tz.Codebook:
    return tz.Codebook.from_bytes(wrap(struct.pack("<III", BASE, pad, fill) + inner, codec=codec))


def arithmetic(classes: list[tuple[int, int]], members: dict[int, int], escape: int) -> bytes:
    """The body for classes of (frequency, extra bits), {id: class} with gapless ids from 0, the escape's class."""
    frequencies, extras = zip(*classes, strict=True)
    head = struct.pack("<IH", len(members), len(classes)) + np.array(frequencies, "<u2").tobytes() + bytes(extras)
    return head + encode_varints(np.array([0] * len(members) + [*members.values(), escape], np.uint32))


def symbols(*values: int) -> bytes:
    """The blob of `rle` for these symbols, in 2 bytes each."""
    return np.array(values, "<u2").tobytes()


def test_run_symbols() -> None:
    blob = symbols(7, BASE + 1 + 255, BASE + 256 + 1, BASE, 271, BASE + 2)
    assert tz.decode(pa.array([blob, symbols(5, BASE + 1)]), rle()).to_pylist() == [
        [7] * (1 + 255 + 256) + [BASE + 271] * 2,
        [5] + [0] * 39,
    ]
    tokens = pa.array([[7] * 4 + [BASE + 271], [5] + [0] * 39, [5, 5], [9] * 600])
    blobs = tz.encode(tokens, rle()).storage.to_pylist()
    assert blobs == [
        symbols(7, BASE + 1 + 3, BASE, 271),
        symbols(5, BASE + 1),
        symbols(5, 5),
        symbols(9, BASE + 256 + 2, BASE + 1 + 87),
    ]


@pytest.mark.parametrize(
    ("blob", "fault"),
    [
        (symbols(BASE + 2), "a run before any token"),
        (symbols(5, BASE), "a literal that is none"),
        (symbols(BASE, 272), "a literal that is none"),
        (symbols(BASE + 1, 5), "a fill that is not the last"),
        (symbols(*[5] * 40, BASE + 1), "has nothing to fill"),
        (b"\x05", "cut short"),
    ],
)
def test_run_faults(blob: bytes, fault: str) -> None:
    with pytest.raises(tz.CorruptBlobError, match=f"row 1 .*{fault}"):
        tz.decode(pa.array([symbols(1), blob]), rle())


def test_runs_ask_for_no_memory_that_the_blob_does_not_justify() -> None:
    """A symbol of a twelfth of a bit, as a run of 3,840 tokens, says more than 4,096 tokens a byte."""
    top, n = BASE + 256 + 15, 150
    ids = {i: 1 if i == top else 2 for i in range(top + 1)}
    book = rle(arithmetic([(100, 0), (3_840, 0), (100, 11)], ids, 0), b"rle+arithmetic")
    plain = tz.Codebook.from_bytes(wrap(arithmetic([(100, 0), (3_840, 0), (100, 11)], ids, 0), codec=b"arithmetic"))
    (blob,) = tz.encode(pa.array([[5] + [top] * n]), plain).storage.to_pylist()
    assert 3_840 * n > 65_536 * len(blob)
    tz.decode(tz.encode(pa.array([[5]]), book), book)  # compiled, which takes memory too
    tracemalloc.start()
    with pytest.raises(tz.CorruptBlobError, match="more than 4096 tokens a byte"):
        tz.decode(pa.array([blob]), book)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    row = pa.array([[5] * (1 + 3_840 * n)])  # so the encoder must write it otherwise
    blobs = tz.encode(row, book)
    assert tz.decode(blobs, book).equals(row.cast(LISTS))


@pytest.mark.parametrize("coder", ["huffman", "arithmetic"])
def test_padding_costs_less_than_two_bytes_a_row(coder: str) -> None:
    rng = np.random.default_rng(1)
    rows: list[Any] = [(rng.zipf(1.2, n) % 30_000 + 1).tolist() for n in rng.integers(1, 300, 800)]
    plain, padded = pa.array(rows), pa.array([row + [0] * (512 - len(row)) for row in rows])
    sizes = []
    for column, codec in ((plain, coder), (padded, f"rle+{coder}")):
        storage = tz.encode(column, tz.train(column, codec)).storage
        sizes.append(sum(len(blob) for blob in storage.to_pylist()))
    assert sizes[1] < sizes[0] + 2 * len(rows)


@pytest.mark.parametrize("coder", ["", "huffman", "arithmetic"])
def test_run_length_never_makes_a_row_longer(coder: str) -> None:
    sample = pa.array([np.random.default_rng(2).integers(0, 50, 5_000)])
    rows = [[5, 5, 5, i, i, i, 7, 7] for i in range(50)] + [[3] * n for n in range(20)] + [[3_000, 3_001]]
    codecs = (coder or "raw", f"rle+{coder}" if coder else "rle")
    plain, runs = (tz.encode(pa.array(rows), tz.train(sample, codec)).storage.to_pylist() for codec in codecs)
    assert all(len(b) <= len(a) + 1 for a, b in zip(plain, runs, strict=True))


@pytest.mark.parametrize("codec", ["rle", "rle+huffman", "rle+arithmetic"])
@pytest.mark.parametrize("sample", [[[7] * 10_000] * 50, [[1, 2, 3] * 9 + [7] * 32_741] * 20 + [[7] * 512]])
def test_a_constant_row_takes_a_byte_for_4096_tokens_and_a_few(codec: str, sample: list[list[int]]) -> None:
    book = tz.train(pa.array(sample, LISTS), codec)
    for n in (8_192, 8_193, 10_000, 32_768, 100_000, 10_000_000):
        row = pa.ListArray.from_arrays([0, n], np.full(n, 7, np.int32))
        blobs = tz.encode(row, book)
        assert tz.decode(blobs, book).equals(row)
        # two bytes a run symbol under `rle`, of 3,840 tokens at most; else the bound, and a run symbol or two escaped
        size = len(blobs.storage[0].as_py())
        assert n / 4_096 <= size <= (2 * n / 3_840 if codec == "rle" else 1.08 * n / 4_096) + 16


def dense_rows() -> pa.Array:
    """Rows of few long runs, among them some of the reserved ids and of the fill's token, and ordinary rows between."""
    rng = np.random.default_rng(7)
    rows: list[Any] = [None, [], [7, 7], [7] * 512, [5, 6] * 3]
    for longest in (300, 9_000, 60_000):
        for pieces in (1, 1, 2, 5, 20):
            ids = rng.choice([7, 7, 7, 8, 9, 20, 4_000], pieces)
            rows.append(np.repeat(ids, rng.integers(1, longest, pieces)).tolist())
            rows.append(rng.integers(0, 30, 40).tolist() + [7] * int(rng.integers(1, longest)))
    return pa.array(rows + [[7] * n for n in (4_096, 4_097, 4_200, 8_192, 8_193, 12_289, 40_000)], LISTS)


@pytest.mark.parametrize("coder", ["raw", "huffman", "arithmetic"])
def test_runs_never_make_a_row_longer_than_the_same_codebook_without_them(coder: str) -> None:
    """Without them: by the codec within, with its part of the codebook. Rows of reserved ids (literals) aside."""
    rows = dense_rows()
    for sample in (rows, pa.array([[7] * 10_000] * 50), pa.array([[8, 9] + [7] * 510] * 9), pa.array([[1, 2]])):
        book = tz.train(sample, "rle" if coder == "raw" else f"rle+{coder}")
        body = zstandard.decompress(book.to_bytes()[book.to_bytes()[5] + 16 :])
        (base,) = struct.unpack_from("<I", body)
        inner = tz.Codebook.from_bytes(wrap(body[12:], codec=coder.encode()))
        blobs = tz.encode(rows, book)
        assert tz.decode(blobs, book).equals(rows)
        plain = tz.encode(rows, inner).storage.to_pylist()
        for row, blob, other in zip(rows.to_pylist(), blobs.storage.to_pylist(), plain, strict=True):
            if row and not any(base <= token < base + 272 for token in row):
                assert len(row) / 4_096 <= len(blob) <= len(other)


@pytest.mark.parametrize(
    ("blob", "fault"),
    [
        (b"\x05\x00", "its number's last byte is zero"),
        (b"\x00\x10", "a symbol that the codebook does not assign"),  # slot 0
        (b"\xff\x0f", "a symbol that the codebook does not assign"),  # slot 4,095
        (b"\x05" + bytes(7), "its number's last byte is zero"),
    ],
)
def test_arithmetic_faults(blob: bytes, fault: str) -> None:
    book = tz.Codebook.from_bytes(wrap(arithmetic([(2_000, 0), (90, 0)], {0: 0}, 1), codec=b"arithmetic"))
    with pytest.raises(tz.CorruptBlobError, match=f"row 1 .*{fault}"):
        tz.decode(pa.array([b"", blob]), book)


@pytest.mark.parametrize(
    ("blob", "fault"),
    [
        (b"\x01\x00", "its last byte is zero"),
        (b"\x04", "a code that the codebook does not assign"),  # slot 32
        (b"\x00\x01", "a code that the codebook does not assign"),  # slot 0, and something after it
        (b"\x02", "it ends in an escape"),  # of the cluster
        (b"\x02\x01", "a code that the codebook does not assign"),
        (b"\x0a", "an escaped id that is known"),  # the cluster's escape, the shared one, and 0
    ],
)
def test_clustered_context_faults(blob: bytes, fault: str) -> None:
    """Ids 0 and 1, shared codes 11, 10 and 01 (escape); one cluster, all lead to it, that codes 0 as 1, escape 01."""
    sound = struct.pack("<IIIH", 2, 1, 2, 1) + bytes([0, 0, 2, 2, 2, 1, 2]) + bytes(6) + struct.pack("<I", 1) + bytes(1)
    book = tz.Codebook.from_bytes(wrap(sound, codec=b"huffman-o1"))
    tokens = pa.array([[0], [1, 0], [5]], LISTS)
    blobs = pa.array([b"\x01", b"\x16", b"\x5a"])
    assert tz.encode(tokens, book).storage.equals(blobs)
    assert tz.decode(blobs, book).equals(tokens)
    with pytest.raises(tz.CorruptBlobError, match=f"row 1 .*{fault}"):
        tz.decode(pa.array([b"\x01", blob]), book)


@pytest.mark.parametrize(
    ("data", "codec", "fault"),
    [
        (b"", b"raw", "a width of no bytes"),
        (b"\x05", b"raw", "a width of 05 bytes"),
        (bytes(5), b"arithmetic", "less than 6 bytes"),
        (arithmetic([(4_000, 0)], {}, 0), b"arithmetic", "a class's frequency"),
        (arithmetic([(9, 13)], {}, 0), b"arithmetic", "extra bits over 12"),
        (arithmetic([(3_000, 0), (3_000, 0)], {0: 1}, 0), b"arithmetic", "6000 slots of 4095"),
        (arithmetic([(9, 0)], {0: 0}, 0), b"arithmetic", "more or fewer ids"),
        (arithmetic([(9, 0)], {}, 1), b"arithmetic", "0 ids in 1 classes"),
        (b"\x01", b"rle", "a body of 1 bytes"),
        (struct.pack("<III", 2**31 - 271, 0, 0) + b"\x02", b"rle", "run symbols from"),
        (struct.pack("<III", 5, 0, 65_537) + b"\x02", b"rle", "filling up to 65537"),
        (struct.pack("<III", 5, 0, 0) + body({1: 0}), b"rle+huffman", "code lengths of 0"),
        (b"", b"huffman-o1", "a body of 0 bytes"),
        (struct.pack("<IIIH", 0, 0, 0, 0) + bytes([0]) + bytes(2), b"huffman-o1", "code of 0 to 0 bits"),
        (struct.pack("<IIIH", 0, 0, 0, 0) + bytes([1, 1, 0]), b"huffman-o1", "a context of 1, of 0"),
        (struct.pack("<IIIH", 0, 0, 0, 1) + bytes([1, 17, 0, 0] + [0] * 4), b"huffman-o1", "code of 17 to 17 bits"),
        (struct.pack("<IIIH", 0, 0, 0, 1) + bytes([1, 1, 0, 0, 1, 0, 0, 0]), b"huffman-o1", "clusters of 1 cells"),
        (struct.pack("<IIIH", 0, 0, 0, 1022), b"huffman-o1", "1022 clusters"),
        (struct.pack("<IIIH", 1 << 20, 0, 0, 0) + bytes(1 << 23), b"huffman-o1", "1048576 ids"),
        (struct.pack("<IIIH", 1 << 17, 0, 0, 1000) + bytes(1 << 20), b"huffman-o1", "131072 ids, 0 cells and 1000"),
    ],
)
def test_bodies_that_are_refused(data: bytes, codec: bytes, fault: str) -> None:
    with pytest.raises(tz.CorruptCodebookError, match=fault):
        tz.Codebook.from_bytes(wrap(data, codec=codec))


def test_the_token_before_makes_codes_shorter() -> None:
    rng = np.random.default_rng(3)
    first = rng.integers(0, 200, 20_000)
    pairs = pa.array([np.column_stack((first, (first * 7 + rng.integers(0, 4, first.size)) % 200 + 200)).ravel()])
    sizes = {}
    for codec in ("huffman", "huffman-o1"):
        (blob,) = tz.encode(pairs, tz.train(pairs, codec)).storage.to_pylist()
        sizes[codec] = 8 * len(blob) / 40_000
    assert sizes["huffman"] > 8.6  # 400 ids, alike in frequency
    assert sizes["huffman-o1"] < 5.6  # 2 bits and 7.6 bits in turn, were each of the 400 contexts a cluster


def test_order_1_forgets_rare_pairs_but_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    rows = pa.array([(rng.zipf(1.3, 400) % 500).tolist() for _ in range(50)])
    whole = tz.train(rows, "huffman-o1")
    assert tz.train([rows[:20], rows[20:]], "huffman-o1") == whole
    monkeypatch.setattr(order1, "MAX_PAIRS", 1_000)
    model = order1.Order1()
    for part in (rows[:20], rows[20:]):
        model.add(token_column(part))
    assert model.pairs.ids.size <= 1_000 + 500
    assert model.tokens == len(rows.flatten())
    singles = np.bincount(rows.flatten().to_numpy())
    assert dict(zip(*map(np.ndarray.tolist, (model.order0().ids, model.order0().counts)), strict=True)) == {
        i: n for i, n in enumerate(singles.tolist()) if n
    }
    book = tz.train(rows, "huffman-o1")
    assert book != whole
    assert tz.decode(tz.encode(rows, book), book).equals(rows.cast(LISTS))
