"""What goes in comes out: any rows, any integer type, any shape of column, any code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from books import ESCAPE, book, reader
from hypothesis import given, settings
from hypothesis import strategies as st

import tokzip_core as tz
from tokzip_core.kernels.prefix import CHUNK

LISTS = pa.list_(pa.int32())
IDS = st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 2**31 - 1), st.just(2**31 - 1))
ROWS = st.lists(st.none() | st.lists(IDS, max_size=20), max_size=30)
# Lengths from 1 to 27 bits, codes that end in many zeros, and an escape of 21 or 27 bits.
BOOKS = [
    book({}),
    book({0: 1}, 2),
    book({1: 1, 2: 2, 300: 8, 5: 9, 6: 9, 7: 10, 9: 19}),
    book({0: 2, 1: 3, 2: 8, 3: 20, 4: 21, 7: 21}),
    book({3: 1, 0: 26, 1: 27, 2: 27, 4: 27, 2**31 - 1: 27}),
    book({3: 2, 0: 10, 1: 10, 2: 12}, escape=1),
    book({3: 2, 0: 10, 1: 10, 2: 12}, escape=27),
]


def rows(values: Any) -> pa.Array:
    return pa.array(values, LISTS)


@settings(deadline=None)
@given(ROWS, ROWS)
def test_any_rows_with_any_codebook(trained_on: Any, values: Any) -> None:
    tokens = rows(values)
    for codebook in [tz.train(rows(trained_on)), *BOOKS]:
        blobs = tz.encode(tokens, codebook)
        decoded = tz.decode(blobs, codebook)
        decoded.validate(full=True)
        assert decoded.equals(tokens)
        assert [b.as_py() for b in blobs.storage] == [plain_blob(row, codebook) for row in values]


def plain_blob(row: list[int] | None, codebook: tz.Codebook) -> bytes | None:
    """One row by FORMAT.md, with Python's integers."""
    if row is None:
        return None
    codes = {token: (length, code) for (length, code), token in reader()["read_codebook"](codebook.to_bytes()).items()}
    bits = at = 0
    for token in row:
        length, code = codes[token if token in codes else ESCAPE]
        bits |= code << at
        at += length
        if token not in codes:
            bits |= token << at
            at += 31
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda item: pa.list_(item, 2)])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_every_integer_and_list_type(kind: Any, bits: int, sign: str) -> None:
    most = min(2 ** (bits - (sign == "int")) - 1, 2**31 - 1)
    values = [[0, most], None, [7, 7], [most, 1]]
    tokens = pa.array(values, kind(getattr(pa, f"{sign}{bits}")()))
    codebook = tz.train(tokens)
    assert tz.decode(tz.encode(tokens, codebook), codebook).equals(rows(values))
    part = tokens.slice(1, 2)
    assert tz.decode(tz.encode(part, codebook), codebook).equals(rows(values[1:3]))


@pytest.mark.parametrize("alphabet", [1, 2, 255, 256, 300, 70_000])
@pytest.mark.parametrize("skew", [0.0, 1.2])
def test_alphabets(alphabet: int, skew: float) -> None:
    shares = 1.0 / np.arange(1, alphabet + 1) ** skew
    ids = np.random.default_rng(1).choice(alphabet, 200_000, p=shares / shares.sum()).astype(np.int32) * 3
    bounds = np.sort(np.random.default_rng(2).integers(0, ids.size, 5_000)).astype(np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(np.concatenate(([0], bounds, [ids.size])).astype(np.int32)), ids)
    trainer = tz.Trainer().add(tokens)
    codebook = trainer.finish()
    blobs = tz.encode(tokens, codebook)
    assert tz.decode(blobs, codebook).equals(tokens)
    bits = 8 * sum(len(b.as_py()) for b in blobs.storage)
    # 1.5 % for the classes; whole bits cost up to one more, which only the smallest alphabets feel; a byte a row
    most = 1.015 * trainer.entropy + (alphabet <= 2)
    assert bits <= most * ids.size + 8 * len(tokens)
    assert trainer.entropy <= codebook.expected_bits <= most


def test_rows_larger_than_a_turn_of_decoding_beside_small_ones() -> None:
    sizes = [3, 0, CHUNK + 1, 1, CHUNK // 3, CHUNK // 3, 3 * CHUNK, 0, 2] + 3_000 * [50]
    ids = np.random.default_rng(3).integers(0, 1000, sum(sizes)).astype(np.int32)
    tokens = pa.ListArray.from_arrays(np.concatenate(([0], np.cumsum(sizes))).astype(np.int32), ids)
    for codebook in (tz.train(tokens), tz.train(tokens.slice(0, 1)), BOOKS[0]):
        assert tz.decode(tz.encode(tokens, codebook), codebook).equals(tokens)


@pytest.mark.parametrize("codebook", BOOKS)
def test_rows_that_end_in_any_number_of_zero_bits(codebook: tz.Codebook) -> None:
    ids = [0, 1, 2, 3, 4, 6, 7, 1 << 30, 1 << 20, 8, 2**31 - 1]
    tokens = rows([[a, b, c][:n] for a in ids for b in ids for c in ids for n in (1, 2, 3)])
    for part in (tokens, *(tokens.slice(i, 1) for i in range(0, len(tokens), 97))):
        assert tz.decode(tz.encode(part, codebook), codebook).equals(part)


def test_sizes_of_single_rows() -> None:
    codebook = book({1: 1, 2: 2, 300: 8, 5: 9, 6: 9})
    sizes = {(): 0, (1,): 1, (1,) * 8: 1, (1,) * 9: 2, (300,): 1, (5,): 1, (6,): 2, (9,): 2, (2**31 - 1,): 5}
    blobs = tz.encode(rows([list(row) for row in sizes]), codebook)
    assert [len(b.as_py()) for b in blobs.storage] == list(sizes.values())


@pytest.mark.parametrize(
    ("tokens", "fault"),
    [
        (pa.array([[1], [2, -1]]), "row 1 has a negative id"),
        (pa.chunked_array([pa.array([[1], [2]]), pa.array([[3], [-4]])]), "row 3 has a negative id"),
        (pa.chunked_array([pa.array([[1], [2]]), pa.array([[2**31]])]), "row 2 has an id over 2147483647"),
        (pa.array([[1], None, [2**31]]), "row 2 has an id over 2147483647"),
        (pa.array([[2**63]], pa.list_(pa.uint64())), "row 0 has an id over 2147483647"),
        (pa.array([[1], [], [None]], LISTS), "row 2 has a null item"),
        (pa.array([[1, 2], None, [3, None]], pa.list_(pa.int8(), 2)), "row 2 has a null item"),
        (pa.array([[1.5]]), "lists of integers"),
        (pa.array([1, 2]), "lists of integers, got int64"),
        ("text", "expected an Arrow array of integer lists, got str"),
        ([[1, 2]], "expected Arrow arrays of integer lists, got list"),
    ],
)
def test_tokens_that_are_refused(tokens: Any, fault: str) -> None:
    for use in (lambda: tz.encode(tokens, BOOKS[0]), lambda: tz.train(tokens)):
        with pytest.raises(tz.InvalidTokensError, match=fault):
            use()


def test_what_lies_under_a_null_row_is_no_fault() -> None:
    tokens = pa.ListArray.from_arrays([0, 1, 3, 4], pa.array([5, -1, None, 6]), mask=pa.array([False, True, False]))
    codebook = tz.train(tokens)
    assert tz.decode(tz.encode(tokens, codebook), codebook).to_pylist() == [[5], None, [6]]


def test_offsets_out_of_order_under_a_null_row() -> None:
    offsets, valid = pa.py_buffer(np.array([0, 50_000, 10], np.int32)), pa.py_buffer(bytes([0b01]))
    items = pa.array(range(10), pa.int32())
    rows = pa.Array.from_buffers(pa.list_(pa.int32()), 2, [valid, offsets], null_count=1, children=[items])
    for call in (lambda: tz.train(rows), lambda: tz.encode(rows, tz.train(pa.array([[1]])))):
        with pytest.raises(tz.InvalidTokensError, match="offsets"):
            call()
