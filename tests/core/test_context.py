"""The `context` codec beside what every codec must do (test_conformance.py): its document, its sample, its bounds."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from books import FORMAT, mutations, wrap
from hypothesis import given, settings
from hypothesis import strategies as st
from test_format import printed_vectors

import tokzip_core as tz
from tokzip_core.models import context_lists, context_rows
from tokzip_core.models.context import Lists, hash_table, write_lists

LISTS = pa.list_(pa.int32())


def rows(values: Any) -> pa.Array:
    return pa.array(values, LISTS)


def prose(seed: int, n: int = 40_000, vocabulary: int = 2_000) -> pa.Array:
    """Rows of a Markov chain of order 2 that now and then repeat a part of themselves."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum(rng.zipf(1.3, n), vocabulary) - 1
    ids = np.zeros(n, np.int64)
    for i in range(2, n):
        ids[i] = (ids[i - 1] * 31 + ids[i - 2] * 7 + 3) % 97 if ranks[i] % 3 == 0 else ranks[i]
        if ranks[i] % 11 == 1 and i > 40:
            ids[i] = ids[i - 20]
    ends = np.unique(np.append(rng.integers(0, n, n // 60), [0, n]))
    return pa.ListArray.from_arrays(ends.astype(np.int32), ids.astype(np.int32))


SAMPLES: dict[str, Any] = {
    "nothing": rows([]),
    "one id": rows([[7] * 500]),
    "few": rows([[1, 2, 3, 1, 2, 3, 2**31 - 1], [5], []]),
    "prose": prose(0),
}


@pytest.fixture(scope="module")
def book_class() -> Any:
    """The class that the Python reader printed in FORMAT.md defines."""
    names: dict[str, Any] = {}
    (code,) = re.findall(r"```py\n(.*?)```", FORMAT, re.DOTALL)
    exec(compile(code, "docs/FORMAT.md", "exec"), names)
    return names["Book"]


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_documents_reader_agrees(book_class: Any, sample: str) -> None:
    codebook = tz.train(SAMPLES[sample], "context")
    book = book_class(codebook.to_bytes())
    tokens = pa.concat_arrays(
        [prose(1, 3_000), rows([[], [9] * 700, [2**31 - 1] * 3, [4_000, 70_000] * 9, list(range(3_000, 3_300))])]
    )
    for row, blob in zip(tokens, tz.encode(tokens, codebook).storage, strict=True):
        assert book.decode(blob.as_py()) == row.as_py()


def test_the_documents_vector(book_class: Any) -> None:
    data, blobs = printed_vectors()["context"]
    codebook = tz.Codebook.from_bytes(bytes.fromhex(data))
    assert (codebook.codec, codebook.id in FORMAT, len(blobs) > 5) == ("context", True, True)
    column = pa.array([bytes.fromhex(blob) for blob in blobs.values()], pa.binary())
    assert tz.encode(rows([list(row) for row in blobs]), codebook).storage.equals(column)
    book = book_class(bytes.fromhex(data))
    assert [tuple(book.decode(blob.as_py())) for blob in column] == list(blobs)


def test_context_pays() -> None:
    tokens = prose(2)
    bits = {codec: tz.train(prose(0), codec) for codec in ("huffman", "context")}
    sizes = {codec: tz.encode(tokens, book).storage.nbytes for codec, book in bits.items()}
    assert sizes["context"] < 0.92 * sizes["huffman"]


def test_what_a_row_has_said_pays() -> None:
    codebook = tz.train(prose(0), "context")
    once = np.random.default_rng(3).integers(0, 2_000, 300).tolist()
    one, two = (len(b) for b in tz.encode(rows([once, once + once]), codebook).storage.to_pylist())
    assert two < 1.3 * one


def test_the_sample_is_bounded_and_minds_neither_order_nor_division(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_rows, "SAMPLE", 9_000)
    monkeypatch.setattr(context_rows, "LONGEST_ROW", 200)
    tokens = pa.concat_arrays([prose(4), rows([[70_000 + i for i in range(1_000)], None, []])])
    whole = tz.Trainer("context").add(tokens)
    kept, lengths = whole._model.rows()
    assert 8_000 < kept.size + lengths.size <= 9_000
    assert lengths.max() <= 200
    shuffled = tokens.take(np.random.default_rng(5).permutation(len(tokens)))
    parts = [tz.Trainer("context").add(shuffled[i : i + 97]) for i in range(0, len(tokens), 97)]
    merged = tz.Trainer("context")
    for part in parts:
        merged.merge(part)
        held = sum(tokens.size for _, _, tokens in merged._model._parts)
        assert held <= 1.25 * 9_000
    assert merged.tokens == whole.tokens == len(tokens.flatten())
    assert merged.finish() == whole.finish()


def test_lists_that_save_little_for_being_asked_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, places = prose(9, 4_000), []
    for bits in (0, 0.5, 4):
        monkeypatch.setattr(context_lists, "LOOK_UP", bits)
        codebook = tz.train(SAMPLES["prose"], "context")
        assert tz.decode(tz.encode(tokens, codebook), codebook).equals(tokens)
        places.append(np.count_nonzero(codebook._tables.pairs))
    assert places[0] > places[1] > places[2]


def test_the_number_of_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    free = tz.train(SAMPLES["prose"], "context")
    monkeypatch.setattr(context_lists, "MOST", 50)
    bounded = tz.train(SAMPLES["prose"], "context")
    all_and_recent = bounded._tables.first.size - 1 + sum(min(256, 2**i - 1) for i in range(1, 10))
    assert free._tables.symbols.size - all_and_recent > 150
    assert 0 < bounded._tables.symbols.size - all_and_recent <= 150
    tokens = prose(9, 2_000)
    assert tz.decode(tz.encode(tokens, bounded), bounded).equals(tokens)


def test_a_book_that_training_never_makes(book_class: Any) -> None:
    """No classes, empty lists, weights far apart, the pair (0, 0), a list that holds the end of the row alone."""
    body = write_lists(
        Lists(
            ids=np.array([5, 70_000], np.uint32),
            rarity=np.array([0, 7, 0, 7], np.uint8),
            flags=np.arange(448).astype(np.uint8),
            first=np.array([0, 0, 0, 10], np.uint32),
            by_class=0,
            after=np.array([0xFFFFFFFF, *[0] * 11], np.uint32),
            begins=np.array([0, 3, *[3] * 9, 5, 6]),
            escapes=np.array([72, *[0] * 9, 20, 30], np.uint8),
            recents=np.zeros(12, np.uint8),
            symbols=np.array([2, 0, 3, 2, 0, 0], np.uint32),
            q=np.array([20, 3, 0, 7, 0, 13], np.uint8),
            pairs=np.array([0], np.uint32),
            pair_counts=np.array([1, 0, 0, 0], np.uint32),
        )
    )
    codebook = tz.Codebook.from_bytes(wrap(body, codec=b"context"))
    book = book_class(codebook.to_bytes())
    tokens = rows([[], [5], [70_000] * 40, [5, 70_000, 2**31 - 1] * 20, list(range(100, 500))])
    blobs = tz.encode(tokens, codebook)
    assert tz.decode(blobs, codebook).equals(tokens)
    assert [book.decode(blob.as_py()) for blob in blobs.storage] == tokens.to_pylist()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), st.sampled_from(list(SAMPLES)))
def test_any_bytes_give_bounded_tokens(blob: bytes, sample: str) -> None:
    codebook = BOOKS.setdefault(sample, tz.train(SAMPLES[sample], "context"))
    try:
        tokens = tz.decode(pa.array([blob], pa.binary()), codebook)
    except tz.CorruptBlobError:
        return
    tokens.validate(full=True)
    assert len(tokens.values) <= 353 * (len(blob) + 2)
    assert tz.decode(tz.encode(tokens, codebook), codebook).equals(tokens)


BOOKS: dict[str, tz.Codebook] = {}


def test_zeros_without_end_are_refused() -> None:
    """The cheapest tokens there are, and no end of the row."""
    codebook = tz.train(SAMPLES["one id"], "context")
    for size in (1, 10, 10_000):
        with pytest.raises(tz.CorruptBlobError, match=r"row 1 .*more tokens than its bytes can hold"):
            tz.decode(pa.array([b"", bytes(size)]), codebook)


HEAD = struct.Struct("<IIIIH")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 1_000_001),
        (0, 9),
        (1, 0),
        (1, 2**22 + 1),
        (1, 11),
        (2, 2**22),
        (2, 1),
        (3, 2**31),
        (4, 257),
        (4, 0),
    ],
)
def test_heads_that_are_refused(place: int, value: int) -> None:
    data = tz.train(SAMPLES["prose"], "context").to_bytes()
    body = zstandard.decompress(data[23:])
    fields = list(HEAD.unpack_from(body))
    assert fields[place] != value
    fields[place] = value
    with pytest.raises(tz.CorruptCodebookError):
        tz.Codebook.from_bytes(wrap(HEAD.pack(*fields) + body[HEAD.size :], codec=b"context"))


def test_bodies_that_are_cut_or_lengthened() -> None:
    data = tz.train(SAMPLES["prose"], "context").to_bytes()
    body = zstandard.decompress(data[23:])
    assert tz.Codebook.from_bytes(wrap(body, codec=b"context"))
    for changed in (b"", body[:17], body[:18], body[: len(body) // 2], body[:-3], body + bytes(9)):
        with pytest.raises(tz.CorruptCodebookError):
            tz.Codebook.from_bytes(wrap(changed, codec=b"context"))


@pytest.mark.slow
def test_mutated_books_are_refused_or_sound() -> None:
    rng = np.random.default_rng(6)
    data = tz.train(SAMPLES["prose"], "context").to_bytes()
    body = zstandard.decompress(data[23:])
    tokens = pa.concat_arrays([prose(7, 2_000), rows([[2**31 - 1, 3_000] * 4])])
    refused = 0
    for changed in mutations([body], rng, 300):
        try:
            codebook = tz.Codebook.from_bytes(wrap(changed, codec=b"context"))
        except tz.CorruptCodebookError:
            refused += 1
            continue
        assert tz.decode(tz.encode(tokens, codebook), codebook).equals(tokens)
    assert refused > 100


def test_a_long_row() -> None:
    tokens = rows([prose(8, 400_000).values.to_pylist()])
    codebook = tz.train(SAMPLES["prose"], "context")
    assert tz.decode(tz.encode(tokens, codebook), codebook).equals(tokens)


def test_keys_chosen_to_collide_are_refused() -> None:
    highs, lows = np.divmod(np.arange(1 << 22, dtype=np.uint64), np.uint64(4))
    keys = (highs << np.uint64(20)) | (lows + np.uint64(1))
    slots = (keys * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & np.uint64(4095)
    same = np.flatnonzero(slots == slots[0])[:1500]
    assert len(same) > 1024
    with pytest.raises(tz.CorruptCodebookError, match="collide"):
        hash_table(highs[same], lows[same])
    assert hash_table(highs[:1500], lows[:1500]).size == 4096
