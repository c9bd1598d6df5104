"""How vectors are written: types, leading dimensions, missing rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import random_rows

from pipelines.embed_stage import EmbedStage
from pipelines.inference import load_model
from pipelines.inference.output import OUTPUT_TYPES, Output, OutputError
from pipelines.inference.rows import from_sequences
from pipelines.stage import Stats

VECTORS = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
NONE = np.zeros(20, np.bool_)


def stacked(column: pa.Array) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def test_float32_is_the_vector_to_the_bit() -> None:
    (column,) = Output(30).columns(VECTORS, NONE)
    assert column.type == pa.list_(pa.float32(), 30)
    assert np.array_equal(stacked(column), VECTORS)


def test_float16_is_rounded_to_nearest() -> None:
    (column,) = Output(30, type="float16").columns(VECTORS, NONE)
    assert np.array_equal(stacked(column), VECTORS.astype(np.float16))


def test_int8_times_its_scale_is_within_half_a_step() -> None:
    vectors = np.concatenate([VECTORS, np.zeros((1, 30), np.float32)])
    column, scale = Output(30, type="int8").columns(vectors, np.zeros(21, np.bool_))
    stored, steps = stacked(column).astype(np.float32), scale.to_numpy()[:, None]
    assert (np.abs(stored[:20]).max(axis=1) == 127).all()
    assert (np.abs(stored * steps - vectors) <= steps * 0.5001).all()


def test_binary_is_the_signs_eight_a_byte() -> None:
    (column,) = Output(30, type="binary").columns(VECTORS, NONE)
    assert column.type == pa.list_(pa.uint8(), 4)
    bits = np.unpackbits(stacked(column), axis=1)
    assert np.array_equal(bits[:, :30], VECTORS > 0)
    assert not bits[:, 30:].any()


@pytest.mark.parametrize("kind", OUTPUT_TYPES)
def test_leading_dimensions_have_length_one(kind: str) -> None:
    output = Output(30, 8, kind)
    columns = output.columns(VECTORS, NONE)
    leading = VECTORS[:, :8] / np.linalg.norm(VECTORS[:, :8], axis=1, keepdims=True)
    expected = Output(8, type=kind).columns(leading, NONE)
    assert [c.type for c in columns] == [f.type for f in output.fields]
    assert (
        np.abs(stacked(columns[0]).astype(float) - stacked(expected[0]).astype(float)).max() <= (kind == "int8") + 1e-3
    )


@pytest.mark.parametrize(("options", "message"), [
    ({"type": "float64"}, "expected one of float32"),
    ({"dimensions": 31}, "vectors have 30"),
    ({"dimensions": 0}, "vectors have 30"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused(options: dict, message: str) -> None:
    with pytest.raises(OutputError, match=message):
        Output(30, **options)


@pytest.mark.parametrize("kind", OUTPUT_TYPES)
def test_the_stage_writes_parquet_of_every_type(tiny, tmp_path, kind: str) -> None:
    work = EmbedStage(model=str(tiny("bert")), output_type=kind, dimensions=16, cache="memory:1MB").open()
    rows = [r.tolist() for r in random_rows([3, 9, 1], 200)]
    tokens = pa.array([rows[0], None, *rows[1:]], pa.list_(pa.int32()))
    block = pa.record_batch({"tokens": tokens, "_row": pa.array(range(4)), "_error": pa.nulls(4, pa.string())})
    (out,) = work.run(iter([block]), Stats())
    schema = work.schema(block.schema)
    assert pa.schema([out.schema.field(n) for n in schema.names]) == schema
    assert all(out[n].is_null().to_pylist() == [False, True, False, False] for n in schema.names)
    good = pa.table(out.select(schema.names).filter(out["_error"].is_null()))
    pq.write_table(good, tmp_path / "e.parquet")
    back = pq.read_table(tmp_path / "e.parquet")
    assert back.schema.equals(schema)
    vectors = load_model(str(tiny("bert")), precision="fp32").embed(from_sequences(rows))
    expected = Output(32, 16, kind).columns(vectors, np.zeros(3, np.bool_))
    for name, column in zip(schema.names, expected, strict=True):
        assert back[name].to_pylist() == column.to_pylist()


def test_type_and_dimensions_are_part_of_the_identity_and_not_of_the_key(tiny) -> None:
    options = [{}, {"output_type": "int8"}, {"dimensions": 16}]
    works = [EmbedStage(model=str(tiny("bert")), **o).open() for o in options]
    assert len({tuple(sorted(w.identity.items())) for w in works}) == 3
    assert len({w.model.fingerprint for w in works}) == 1
