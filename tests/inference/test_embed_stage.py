"""The embed stage: a row out for every row in, bad ones with their reason."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_up import change_a_weight, random_rows

import tokzip_core as tz
from pipelines import embed_stage
from pipelines.embed_stage import EmbedStage
from pipelines.inference import ModelError, load_model
from pipelines.inference.rows import from_sequences
from pipelines.stage import BOOKKEEPING, Stats
from pipelines.storage import InputError


def block(tokens: pa.Array, first: int = 0, errors: list[str | None] | None = None, **more) -> pa.RecordBatch:
    n = len(tokens)
    return pa.record_batch(
        {
            "tokens": tokens,
            **more,
            "_row": pa.array(range(first, first + n)),
            "_error": pa.array(errors or [None] * n, pa.string()),
        }
    )


def run(stage: EmbedStage, blocks: list[pa.RecordBatch]) -> tuple[list[pa.RecordBatch], Stats]:
    stats = Stats()
    return list(stage.open().run(iter(blocks), stats)), stats


def test_blobs_become_vectors_in_order(tiny, tmp_path: Path) -> None:
    rows = [r.tolist() for r in random_rows([3, 2, 9, 3, 30, 1, 64, 80], 200)]
    tokens = pa.array(rows, pa.list_(pa.int32()))
    codebook = tz.train(tokens)
    codebook.save(str(tmp_path / "c.tzc"))
    blobs = tz.encode(tokens, codebook)
    stage = EmbedStage(model=str(tiny("bert")), codebook=str(tmp_path / "c.tzc"), carry=("id",), cache="memory:1MB")
    stage = pickle.loads(pickle.dumps(stage))
    ids = pa.array([f"r{i}" for i in range(8)])
    blocks = [block(blobs[:5], 10, id=ids[:5]), block(blobs[5:5], 15, id=ids[5:5]), block(blobs[5:], 15, id=ids[5:])]
    out, stats = run(stage, blocks)
    assert stage.columns(blocks[0].schema) == ["tokens", "id"]
    expected = load_model(str(tiny("bert")), precision="fp32").embed(from_sequences(rows))
    schema = stage.open().schema(blocks[0].schema)
    assert schema == pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), 32))])
    table = pa.Table.from_batches(out)
    assert [b.num_rows for b in out] == [5, 0, 3]
    assert table.schema == pa.schema([*schema, *BOOKKEEPING])
    assert table["_row"].to_pylist() == list(range(10, 18))
    assert table["id"].to_pylist() == ids.to_pylist()
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), expected)
    assert stats["tokens"] == sum(map(len, rows))
    assert (stats["rows_computed"], stats["rows_truncated"]) == (8, 1)
    again, stats = run(stage, blocks)
    assert pa.Table.from_batches(again).equals(table)
    assert (stats["rows_computed"], stats["cache_hits.memory"]) == (0, 8)


def _corrupt_blob(codebook: tz.Codebook) -> bytes:
    """Bytes that no row encodes to."""
    for candidate in (bytes([n] * size) for size in (1, 3, 9) for n in range(256)):
        try:
            tz.decode(pa.array([candidate], pa.binary()), codebook)
        except tz.CorruptBlobError:
            return candidate
    pytest.fail("the codec takes any bytes")


def test_bad_rows_keep_their_place_and_say_why(tiny, tmp_path: Path) -> None:
    rows = [[5, 6], None, [7], [199], [200], [4], [8, 9, 10], None]
    tokens = pa.array(rows, pa.list_(pa.int32()))
    codebook = tz.train(pa.array([*rows, list(range(200))], pa.list_(pa.int32())))
    codebook.save(str(tmp_path / "c.tzc"))
    stored = tz.encode(tokens, codebook).storage.to_pylist()
    stored[2] = _corrupt_blob(codebook)
    blobs = pa.ExtensionArray.from_storage(tz.encode(tokens, codebook).type, pa.array(stored, pa.binary()))
    stage = EmbedStage(model=str(tiny("bert")), codebook=str(tmp_path / "c.tzc"))
    errors = [None] * 6 + ["bad before", "null and bad before"]
    (out,), _ = run(stage, [block(blobs, errors=errors)])
    assert out["_error"].to_pylist() == [
        None,
        "null tokens",
        "corrupt token blob",
        None,
        "a token id outside the model's vocabulary of 200",
        None,
        "bad before",
        "null and bad before",
    ]
    assert out["embedding"].is_null().to_pylist() == [e is not None for e in out["_error"].to_pylist()]
    expected = load_model(str(tiny("bert")), precision="fp32").embed(from_sequences([[5, 6], [199]]))
    assert np.array_equal(np.stack(out["embedding"].take([0, 3]).to_numpy(zero_copy_only=False)), expected)


def test_an_empty_row_without_special_tokens_is_bad(tiny) -> None:
    (out,), _ = run(EmbedStage(model=str(tiny("bert"))), [block(pa.array([[1], []], pa.list_(pa.int64())))])
    assert out["_error"].to_pylist() == [None, "no tokens, and the model has no special tokens to add"]


def test_what_is_held_stays_bounded(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_stage, "_GATHER_TOKENS", 50)
    taken = 0

    def blocks():
        nonlocal taken
        for i in range(20):
            taken += 1
            yield block(pa.array([[i + 1] * 20], pa.list_(pa.int16())), i)

    stage = EmbedStage(model=str(tiny("bert")))
    for i, out in enumerate(stage.open().run(blocks(), Stats())):
        assert out["_row"].to_pylist() == [i]
        assert taken <= i + 3


def test_identity_and_metadata(tiny) -> None:
    work = EmbedStage(model=str(tiny("bert"))).open()
    other = EmbedStage(model=str(tiny("bert")), cache="memory:1MB", batch_tokens=99).open()
    assert other.identity == work.identity
    assert EmbedStage(model=str(tiny("bert")), max_length=9).open().identity != work.identity
    described = json.loads(work.file_metadata["tokzip.model"])
    assert described["fingerprint"] == work.identity["model"]
    assert described["dimension"] == 32
    assert work.notes["batches"] == "packed"


def test_a_closed_stage_is_loaded_anew(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(embed_stage.CachedEncoder, "close", lambda encoder: closed.append(encoder))
    stage = EmbedStage(model=str(tiny("bert")), batch_tokens=98)
    stage.close()
    work = stage.open()
    assert stage.open() is work
    assert not closed
    stage.close()
    assert closed == [work.encoder]
    assert stage.open() is not work


def test_a_settled_stage_has_the_weights_of_now(tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bert"), tmp_path / "m")
    stage = EmbedStage(model=str(folder))
    before = stage.open().model.fingerprint
    change_a_weight(folder)
    settled, model = stage.settled(None)
    assert model.fingerprint != before
    assert settled.open().model is model


def test_another_vocabulary_is_an_error_before_any_work(tiny_model: Path) -> None:
    own = load_model(str(tiny_model)).settings.vocabulary
    assert EmbedStage(model=str(tiny_model), vocabulary=own).open()
    with pytest.raises(ModelError, match="another vocabulary"):
        EmbedStage(model=str(tiny_model), vocabulary="0" * 64).open()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "ids"}, "no column 'ids'"),
        ({"carry": ("x",)}, "no column 'x'"),
        ({"codebook": "c.tzc"}, "expected token blobs"),
        ({"column": "text"}, "expected lists of integers"),
        ({"carry": ("embedding",)}, "cannot be carried"),
    ],
)
def test_a_shard_of_another_shape_is_refused(options: dict, message: str) -> None:
    source = pa.schema([("tokens", pa.list_(pa.int32())), ("text", pa.string()), ("embedding", pa.int8())])
    with pytest.raises(InputError, match=message):
        EmbedStage(model="m", **options).columns(source)
