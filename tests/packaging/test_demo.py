"""The embedded corpus: the hub's layout and schema, and readable by the tools that people already have."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import demo


def test_the_shards_have_the_hubs_layout(demo_corpus: Path) -> None:
    names = sorted(path.name for path in demo_corpus.iterdir())
    assert names == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    table = pa.concat_tables(pq.read_table(demo_corpus / name) for name in names)
    assert table.schema.equals(pa.schema([("text", pa.string())]))
    texts = table["text"].to_pylist()
    assert texts == demo.paragraphs()
    assert len(texts) > 2_000
    assert sum(map(len, texts)) > 300_000
    assert all(texts)


def test_hugging_face_datasets_reads_it(demo_corpus: Path, tmp_path: Path) -> None:
    data = datasets.load_dataset(str(demo_corpus), split="train", cache_dir=str(tmp_path))
    assert data["text"][:] == demo.paragraphs()


def test_writing_again_touches_nothing(tmp_path: Path) -> None:
    for path in demo.write_corpus(tmp_path, shards=2, rows=101):
        os.utime(path, (1, 1))
    paths = demo.write_corpus(tmp_path, shards=2, rows=101)
    assert [path.stat().st_mtime for path in paths] == [1, 1]
    assert [pq.read_metadata(path).num_rows for path in paths] == [50, 51]
    paths[0].write_bytes(b"damaged")
    assert demo.write_corpus(tmp_path, shards=2, rows=101) == paths
    assert pq.read_metadata(paths[0]).num_rows == 50


def test_the_model_is_all_there(model_dir: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        assert (model_dir / name).is_file(), name


def test_main_writes_the_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(tmp_path), "--corpus-only"]) == 0
    assert f"{demo.ROWS:,} rows in 3 shards" in capsys.readouterr().out
