"""What every codec must do, whatever it is made of. A new codec is tested by being registered."""

from __future__ import annotations

import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from books import mutations, wrap
from freeze import FROZEN, frozen_name
from hypothesis import given, settings
from hypothesis import strategies as st

import tokzip_core as tz

LISTS = pa.list_(pa.int32())
MUTATIONS = int(os.environ.get("TOKZIP_MUTATIONS", "20000"))  # a codec; more for a longer run by hand
EXPANSION = 1 << 12  # tokens that one byte of a blob may stand for at most
IDS = st.one_of(st.integers(0, 3), st.integers(0, 300), st.integers(0, 2**31 - 1), st.just(2**31 - 1))
RUNS = st.tuples(IDS, st.integers(1, 600)).map(lambda run: [run[0]] * run[1])
ROW = st.lists(IDS, max_size=20) | st.lists(RUNS, max_size=4).map(lambda runs: [i for run in runs for i in run])
ROWS = st.lists(st.none() | ROW, max_size=20)

pytestmark = pytest.mark.parametrize("codec", tz.codecs())


def rows(values: Any) -> pa.Array:
    return pa.array(values, LISTS)


def text(seed: int, n: int = 20_000, vocabulary: int = 30_000) -> pa.Array:
    """Rows of 0 to 200 ids, as skewed as words are, each leaning on the one before."""
    rng = np.random.default_rng(seed)
    ids = rng.zipf(1.2, n) % vocabulary
    ids[1::2] = np.where(rng.random(n // 2) < 0.5, (7 * ids[: n // 2 * 2 : 2] + 3) % vocabulary, ids[1::2])
    ends = np.concatenate(([0], np.minimum(n, np.cumsum(rng.integers(0, 200, n // 100))), [n]))
    return pa.ListArray.from_arrays(ends.astype(np.int32), ids.astype(np.int32))


def padded(seed: int, length: int = 64) -> pa.Array:
    rng = np.random.default_rng(seed)
    ids = np.where(np.arange(length) < rng.integers(0, length, (400, 1)), rng.zipf(1.3, (400, length)) % 9_000, 0)
    return pa.ListArray.from_arrays(np.arange(0, ids.size + 1, length, dtype=np.int32), ids.ravel().astype(np.int32))


COLUMNS: dict[str, Any] = {
    "no rows": rows([]),
    "empty and null rows": rows([[], None, [], None]),
    "one id": rows([[5]] * 3 + [[5] * n for n in (2, 3, 255, 256, 257, 3_839, 3_840, 3_841, 70_000)]),
    "the largest ids": rows([[2**31 - 1] * n for n in range(9)] + [[0, 2**31 - 1, 2**31 - 2]]),
    "ids around the widths of bytes": rows([[2**bits + d] for bits in (8, 16, 24) for d in (-2, -1, 0, 1)]),
    "two ids": rows([np.random.default_rng(1).integers(0, 2, n).tolist() for n in range(300)]),
    "every id once": rows([list(range(5_000)), list(range(70_000, 75_000))]),
    "text": text(2),
    "padded rows": padded(3),
    "one long row": rows([text(4, 300_000).values.to_pylist()]),
    "many short rows": rows([[i % 7, i % 11][: i % 3] for i in range(5_000)]),
}
TRAINED_ON = {"nothing": rows([]), "text": text(5), "padded rows": padded(6), "the largest ids": rows([[2**31 - 1, 1]])}


def check(tokens: pa.Array, codebook: tz.Codebook) -> tz.TokenBlobArray:
    blobs = tz.encode(tokens, codebook)
    decoded = tz.decode(blobs, codebook)
    decoded.validate(full=True)
    assert decoded.equals(tokens)
    return blobs


@pytest.mark.parametrize("column", COLUMNS)
def test_special_columns(codec: str, column: str) -> None:
    tokens = COLUMNS[column]
    for sample in [tokens, *TRAINED_ON.values()]:
        check(tokens, tz.train(sample, codec))


@settings(max_examples=60)
@given(ROWS, ROWS)
def test_any_rows_with_any_codebook(codec: str, sample: Any, values: Any) -> None:
    check(rows(values), tz.train(rows(sample), codec))


def test_every_row_can_be_read_alone(codec: str) -> None:
    tokens = pa.concat_arrays([text(7), rows([None, [], [2**31 - 1]]), padded(8)])
    codebook = tz.train(text(7), codec)
    blobs = check(tokens, codebook)
    for i in np.random.default_rng(9).integers(0, len(tokens), 300):
        row = slice(i, i + 1)
        assert tz.encode(tokens[row], codebook).storage.equals(blobs.storage[row])
        bare = pa.array([blobs.storage[int(i)].as_py()], pa.binary())  # in a buffer of its own, nothing after it
        assert tz.decode(bare, codebook).equals(tokens[row])


@settings(deadline=None, max_examples=30)
@given(ROWS, st.integers(0, 20), st.integers(0, 20))
def test_slices_of_tokens_and_blobs(codec: str, values: Any, begin: int, length: int) -> None:
    tokens = rows(values)
    codebook = tz.train(tokens, codec)
    part = tokens.slice(min(begin, len(tokens)), length)
    check(part, codebook)
    assert tz.decode(tz.encode(tokens, codebook).slice(min(begin, len(tokens)), length), codebook).equals(part)


@settings(deadline=None, max_examples=30)
@given(st.lists(ROWS, max_size=4))
def test_chunks(codec: str, parts: Any) -> None:
    tokens = pa.chunked_array([rows(part) for part in parts], LISTS)
    codebook = tz.train(tokens, codec)
    assert codebook == tz.train(iter([rows(part) for part in parts]), codec)
    assert codebook == tz.train(rows([row for part in parts for row in part]), codec)
    blobs = tz.encode(tokens, codebook)
    assert blobs.type == tz.TokenBlobType(codec, codebook.version, codebook.id)
    chunked = pa.chunked_array([tz.encode(rows(part), codebook) for part in parts], blobs.type)
    for either in (blobs, chunked, blobs.storage, blobs.storage.cast(pa.large_binary())):
        assert tz.decode(either, codebook).to_pylist() == tokens.to_pylist()


def test_training_does_not_mind_order_or_division(codec: str) -> None:
    parts = [text(seed) for seed in range(3)] + [rows([[2**31 - 1, 5], None, []]), padded(4), padded(4, 32)]
    whole = tz.train(parts, codec)
    backward = tz.Trainer(codec)
    for part in reversed(parts):
        backward.merge(pickle.loads(pickle.dumps(tz.Trainer(codec).add(part))))
    assert backward.finish() == whole
    assert backward.finish() == whole
    assert backward.tokens == sum(len(part.flatten()) for part in parts)
    one, two = tz.Trainer(codec).add(parts[0]), tz.Trainer(codec).add(parts[0])
    assert one.merge(tz.Trainer(codec)).finish() == two.finish()


def test_codebooks_travel(codec: str, tmp_path: Path) -> None:
    codebook = tz.train(text(1), codec)
    codebook.save(str(tmp_path / "codebook.tzc"))
    blobs = tz.encode(text(2), codebook)
    for other in (
        tz.load_codebook(str(tmp_path / "codebook.tzc")),
        tz.Codebook.from_bytes(codebook.to_bytes()),
        pickle.loads(pickle.dumps(codebook)),
    ):
        assert (other.codec, other.version, other.id) == (codec, codebook.version, codebook.id)
        assert tz.encode(text(2), other).storage.equals(blobs.storage)
        assert tz.decode(blobs, other).equals(text(2))


def test_the_bits_that_a_codebook_expects(codec: str) -> None:
    tokens = rows([text(3, 50_000).values.to_pylist()])  # one row, so that its end costs nothing
    codebook = tz.train(tokens, codec)
    (blob,) = tz.encode(tokens, codebook).storage
    assert 8 * len(blob.as_py()) == pytest.approx(codebook.expected_bits * 50_000, rel=0.01)


def test_threads_share_a_codebook(codec: str) -> None:
    columns = [text(seed, 50_000) for seed in range(4)]
    codebook = tz.train(columns[:2], codec)
    expected = [tz.encode(column, codebook).storage for column in columns]

    def work(i: int) -> bool:
        blobs = tz.encode(columns[i % 4], codebook)
        return blobs.storage.equals(expected[i % 4]) and tz.decode(blobs, codebook).equals(columns[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(16)))


@pytest.mark.slow
@pytest.mark.parametrize("sample", TRAINED_ON)
def test_mutated_blobs(codec: str, sample: str) -> None:
    """MUTATIONS a codec: each is refused, or decodes to bounded tokens that encode and decode again."""
    codebook = tz.train(TRAINED_ON[sample], codec)
    rng = np.random.default_rng(7)
    tokens = pa.concat_arrays([text(8, 2_000), padded(9).slice(0, 40), COLUMNS["the largest ids"], COLUMNS["one id"]])
    blobs = tz.encode(tokens, codebook).storage.to_pylist()
    blobs = [blob for blob in blobs if len(blob) < 1_000]
    refused = 0
    for blob in mutations(blobs, rng, MUTATIONS // len(TRAINED_ON)):
        try:
            decoded = tz.decode(pa.array([blob], pa.binary()), codebook)
        except tz.CorruptBlobError as error:
            refused += "row 0" in str(error)
            continue
        assert len(decoded.values) <= EXPANSION * len(blob)
        if len(decoded.values) < 10_000:
            check(decoded, codebook)
    assert refused > 0


def test_mutated_codebooks(codec: str) -> None:
    """Under a correct frame: a body is refused, or what it says encodes and decodes."""
    rng = np.random.default_rng(10)
    data = tz.train([text(11, 3_000, 300), padded(12, 16)], codec).to_bytes()
    body = zstandard.decompress(data[16 + data[5] :])
    tokens = pa.concat_arrays([text(13, 300, 400), padded(14, 16).slice(0, 5), rows([[2**31 - 1, 7, 7, 7], []])])
    accepted = refused = 0
    for changed in mutations([body], rng, 400):
        try:
            codebook = tz.Codebook.from_bytes(wrap(changed, codec=codec.encode()))
        except tz.CorruptCodebookError:
            refused += 1
            continue
        accepted += 1
        check(tokens, codebook)
        for blob in mutations(tz.encode(tokens, codebook).storage.to_pylist(), rng, 3):
            with suppress(tz.CorruptBlobError):
                tz.decode(pa.array([blob], pa.binary()), codebook)
    assert refused > 0
    assert accepted + refused == 400


def test_what_this_version_writes_was_frozen_and_is_still_read(codec: str) -> None:
    version = tz.train(rows([]), codec).version
    assert (FROZEN / frozen_name(codec, version)).exists(), f"run tests/core/freeze.py {codec}"
    files = sorted(FROZEN.glob(frozen_name(codec, "*")))
    for file in files:
        frozen = json.loads(file.read_text())
        codebook = tz.Codebook.from_bytes(bytes.fromhex(frozen["codebook"]))
        blobs = pa.array([None if blob is None else bytes.fromhex(blob) for blob in frozen["blobs"]], pa.binary())
        assert tz.decode(blobs, codebook).equals(rows(frozen["tokens"]))
        if codebook.version == version:
            assert tz.encode(rows(frozen["tokens"]), codebook).storage.equals(blobs)
