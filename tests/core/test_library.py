"""The objects around the codec: codebooks, trainers, the Arrow type, threads, and what importing costs."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tokzip_core as tz

ROOT = Path(__file__).parents[2]


def tokens_of(seed: int, n: int = 20_000) -> pa.Array:
    ids = (np.random.default_rng(seed).zipf(1.2, n) % 30_000).astype(np.int32)
    return pa.ListArray.from_arrays(np.arange(0, n + 1, 100, dtype=np.int32), ids)


def test_codecs() -> None:
    assert "huffman" in tz.codecs()
    with pytest.raises(tz.UnknownCodecError, match=r"'zip'.*huffman"):
        tz.train(tokens_of(0), codec="zip")


def test_trainers() -> None:
    trainer = tz.Trainer().add(tokens_of(0)).merge(tz.Trainer().add(pa.array([[2**31 - 1, 5]])))
    assert trainer.tokens == 20_002
    assert len(pickle.dumps(trainer)) < 12 * 20_002 + 1_000
    with pytest.raises(tz.UnknownCodecError):
        tz.Trainer("nothing")
    with pytest.raises(tz.TokzipError, match="'raw' cannot be merged into one of 'huffman'"):
        trainer.merge(tz.Trainer("raw"))


def test_entropy() -> None:
    assert tz.Trainer().entropy == 0
    assert tz.Trainer().add(pa.array([[1, 2], [3, 4]])).entropy == 2


def test_codebooks_save_load_pickle(tmp_path: Path) -> None:
    codebook = tz.train(tokens_of(0))
    codebook.save(str(tmp_path / "new" / "codebook.tzc"))
    codebook.save("memory://books/codebook.tzc")
    for other in (
        tz.load_codebook(str(tmp_path / "new" / "codebook.tzc")),
        tz.load_codebook("memory://books/codebook.tzc"),
        tz.Codebook.from_bytes(codebook.to_bytes()),
        pickle.loads(pickle.dumps(codebook)),
    ):
        assert other == codebook
        assert (other.id, hash(other), other.expected_bits) == (codebook.id, hash(codebook), codebook.expected_bits)
    assert len(pickle.dumps(codebook)) < len(codebook.to_bytes()) + 200
    (tmp_path / "bad.tzc").write_bytes(codebook.to_bytes()[:-3])
    with pytest.raises(tz.CorruptCodebookError, match=r"bad\.tzc"):
        tz.load_codebook(str(tmp_path / "bad.tzc"))


def test_blobs_of_another_codebook() -> None:
    one, two = tz.train(tokens_of(0)), tz.train(tokens_of(1))
    with pytest.raises(tz.UnknownCodebookError, match=f"{one.id}, not {two.id}"):
        tz.decode(tz.encode(tokens_of(0), one), two)
    with pytest.raises(tz.CorruptBlobError, match="got int64"):
        tz.decode(pa.array([1]), one)
    with pytest.raises(tz.CorruptBlobError, match="got list"):
        tz.decode([b"1"], one)  # type: ignore[arg-type]


def test_the_type_is_registered_and_survives_ipc_and_pickle() -> None:
    codebook = tz.train(tokens_of(0))
    batch = pa.record_batch({"tokens": tz.encode(tokens_of(0), codebook)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    read = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert read.schema.field("tokens").type == tz.TokenBlobType("huffman", 1, codebook.id)
    assert isinstance(read["tokens"].chunk(0), tz.TokenBlobArray)
    assert tz.decode(read["tokens"], codebook).equals(tokens_of(0))
    assert pickle.loads(pickle.dumps(batch.schema)) == batch.schema


def test_blobs_that_come_back_as_large_binary() -> None:
    """As Polars gives them."""
    codebook = tz.train(tokens_of(0))
    kind = tz.TokenBlobType("huffman", 1, codebook.id, storage_type=pa.large_binary())
    large = tz.encode(tokens_of(0), codebook).storage.cast(pa.large_binary())
    schema = pa.schema([pa.field("tokens", kind)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.ExtensionArray.from_storage(kind, large)], schema))
    read = pa.ipc.open_stream(sink.getvalue()).read_all()["tokens"]
    assert read.type == kind != tz.TokenBlobType("huffman", 1, codebook.id)
    assert tz.decode(read, codebook).equals(tokens_of(0))


@pytest.mark.parametrize("bad", [b"", b"{}", b"[]", b'{"codec": 1, "version": 1, "codebook": ""}'])
def test_type_metadata_that_cannot_be_read(bad: bytes) -> None:
    with pytest.raises(tz.TokzipError, match=r"tokzip\.token_blob cannot be read"):
        tz.TokenBlobType.__arrow_ext_deserialize__(pa.binary(), bad)
    good = tz.TokenBlobType("huffman", 1, "").__arrow_ext_serialize__()
    with pytest.raises(tz.TokzipError, match="stored as binary"):
        tz.TokenBlobType.__arrow_ext_deserialize__(pa.string(), good)


def run(code: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_loads_nothing_heavy() -> None:
    loaded = run("import sys, tokzip_core; print(*sys.modules)").split()
    assert "tokzip_core" in loaded
    heavy = {"numba", "torch", "transformers", "apache_beam", "zstandard", "fsspec", "pipelines", "pyarrow.parquet"}
    assert not heavy & set(loaded)


def test_kernels_work_where_no_cache_can_be_written() -> None:
    code = (
        "import pyarrow as pa, tokzip_core as tz; t = pa.array([[1, 2, 3]]); b = tz.train(t);"
        "from tokzip_core.kernels.prefix import decode_rows; print(decode_rows.stats.cache_path);"
        "print(tz.decode(tz.encode(t, b), b).to_pylist())"
    )
    # the only locator left is for notebooks, so numba finds no place for a cache
    out = run(code, NUMBA_CACHE_LOCATOR_CLASSES="IPythonCacheLocator")
    assert "[[1, 2, 3]]" in out
    assert "None" in out
