"""docs/FORMAT.md: its reader and its test vector are run against the library."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from books import ESCAPE, FORMAT, body, book, reader, wrap

import tokzip_core as tz

HEX = (
    "544b5a430107687566666d616e0100000000002700000028b52ffd20273901000d00000000000301015a00000000c7e9"
    "01bfb8028dddfbff0702030508080a0a0a0a0a0e0e1515"
)
ID = "56c4587a9487b5a90b6abf38d46249232b3e876d128d5dbd1578429f0c14fe13"
# Frozen: files that a released version wrote hold these.
BLOBS = {
    (): "",
    (0,): "03",
    (1,): "05",
    (0, 0, 0): "3f",
    (7, 9): "e969",
    (100,): "a9",
    (103, 104, 1): "a9a750",
    (30000,): "c9",
    (70000, 5): "c94106",
    (2147483646,): "49",
    (2,): "490140",
    (2147483647, 1): "4901e0ffffff5f",
    (4096, 3, 0, 102): "49010000020090140006000000a70a",
}


def test_frozen_codebook_and_blobs() -> None:
    codebook = tz.Codebook.from_bytes(bytes.fromhex(HEX))
    assert (codebook.id, codebook.codec, codebook.version) == (ID, "huffman", 1)
    tokens = pa.array([list(row) for row in BLOBS], pa.list_(pa.int32()))
    blobs = pa.array([bytes.fromhex(blob) for blob in BLOBS.values()], pa.binary())
    assert tz.encode(tokens, codebook).storage.equals(blobs)
    assert tz.decode(blobs, codebook).equals(tokens)


def printed_vectors() -> dict[str, tuple[str, dict[tuple[int, ...], str]]]:
    """Of each codec, the codebook and the blobs that the document prints."""
    vectors = {}
    for codec, section in re.findall(r"^### `([a-z0-9+-]+)`\n(.*?)(?=^##|\Z)", FORMAT, re.DOTALL | re.MULTILINE):
        section = section.replace("300 times 5", ", ".join(300 * ["5"]))
        table = re.findall(r"^\| ([\d, ]*) \| ([0-9a-f]*) \|$", section, re.MULTILINE)
        blobs = {tuple(int(t) for t in row.split(",") if t.strip()): blob for row, blob in table}
        vectors[codec] = "".join(re.findall(r"^    ([0-9a-f]+)$", section, re.MULTILINE)), blobs
    return vectors


def test_the_document_prints_the_same_vector() -> None:
    assert ID in FORMAT
    assert printed_vectors()["huffman"] == (HEX, BLOBS)


def test_the_document_names_every_codec() -> None:
    assert [codec for codec in tz.codecs() if f"`{codec}`" not in FORMAT] == []


@pytest.mark.parametrize("codec", ["raw", "rle", "rle+huffman", "arithmetic", "rle+arithmetic", "huffman-o1"])
def test_the_documents_vectors(codec: str) -> None:
    data, blobs = printed_vectors()[codec]
    codebook = tz.Codebook.from_bytes(bytes.fromhex(data))
    assert (codebook.codec, codebook.id in FORMAT, len(blobs) > 5) == (codec, True, True)
    tokens = pa.array([list(row) for row in blobs], pa.list_(pa.int32()))
    column = pa.array([bytes.fromhex(blob) for blob in blobs.values()], pa.binary())
    assert tz.encode(tokens, codebook).storage.equals(column)
    assert tz.decode(column, codebook).equals(tokens)


def random_books() -> list[tz.Codebook]:
    rng = np.random.default_rng(4)
    books = [book({}), book({2**31 - 1: 27}), tz.Codebook.from_bytes(bytes.fromhex(HEX))]
    for vocabulary, skew in ((3, 1.0), (40, 2.5), (900, 1.1), (30_000, 1.0)):
        shares = 1.0 / np.arange(1, vocabulary + 1) ** skew
        ids = rng.permutation(10 * vocabulary)[rng.choice(vocabulary, 60_000, p=shares / shares.sum())]
        books.append(tz.train(pa.array([ids])))
    return books


@pytest.mark.parametrize("codebook", random_books(), ids=lambda codebook: codebook.id[:8])
def test_the_documents_reader_agrees(codebook: tz.Codebook) -> None:
    names = reader()
    codes = names["read_codebook"](codebook.to_bytes())
    rng = np.random.default_rng(5)
    known = [token for token in codes.values() if token != ESCAPE] + [0, 2**31 - 1, 77]
    rows: list[Any] = [rng.choice(known, rng.integers(0, 30)).tolist() for _ in range(200)]
    blobs = tz.encode(pa.array(rows, pa.list_(pa.int64())), codebook)
    assert [names["decode"](blob.as_py(), codes) for blob in blobs.storage] == rows


def test_a_body_is_found_again_in_what_training_writes() -> None:
    codebook = tz.train(pa.array([[1, 1, 1, 2], [70000]]))
    codes = reader()["read_codebook"](codebook.to_bytes())
    lengths = {token: length for (length, _), token in codes.items() if token != ESCAPE}
    (escape,) = (length for (length, _), token in codes.items() if token == ESCAPE)
    assert set(lengths) == {1, 2, 70000}
    again = tz.Codebook.from_bytes(wrap(body(lengths, escape)))
    blobs = tz.encode(pa.array([[1, 2, 70000, 3]]), codebook)
    assert tz.encode(pa.array([[1, 2, 70000, 3]]), again).storage.equals(blobs.storage)
