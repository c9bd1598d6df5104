"""The installed command does the main job: on the embedded corpus on every local runner, and on real text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import tokzip_core as tz
from pipelines import cli, demo

pytestmark = pytest.mark.slow
RUNNERS = {
    "one process": [],
    "two processes": ["--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    "prism": ["--runner=PrismRunner"],
}


def here(*argv: object) -> int:
    """The command in this process, which has imported all that it takes; its exit code."""
    return cli.main([str(a) for a in argv])


def plain_vectors(model_dir: Path, texts: list[str], max_length: int = 256) -> np.ndarray:
    """Mean-pooled, normalised vectors by transformers alone: padded batches of 32 of similar length, fp32."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_dir), AutoModel.from_pretrained(model_dir).eval()
    order = np.argsort([len(t) for t in texts])
    vectors = np.empty((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for some in np.split(order, range(32, len(texts), 32)):
            batch = tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            vectors[some] = torch.nn.functional.normalize(pooled).numpy()
    return vectors


def vectors_of(table: pa.Table) -> np.ndarray:
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    return flat.reshape(table.num_rows, -1)


def data_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.parquet"))}


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    demo.write_corpus(folder, shards=3, rows=240)
    return folder


@pytest.fixture(scope="module")
def everywhere(
    small_corpus: Path, model_dir: Path, tokzip: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The small corpus's output on every runner, each with nothing cached."""
    folder = tmp_path_factory.mktemp("out")
    there = {name: folder / name.replace(" ", "-") for name in RUNNERS}
    if not shutil.which("prism"):
        if os.environ.get("TOKZIP_REQUIRE_PRISM"):
            pytest.fail("prism is required here, and is not on the PATH")
        del there["prism"]
    named = ["--input", small_corpus, "--tokenizer", model_dir, "--model", model_dir, "--cache", "none"]
    for name, output in there.items():
        tokzip("run", *named, "--output", output, *RUNNERS[name])
    return there


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_leaves_the_same_bytes(everywhere: dict[str, Path], runner: str) -> None:
    if runner not in everywhere:
        pytest.skip("prism is not on the PATH: make prism")
    for stage in ("tokens", "embeddings"):
        expected = data_files(everywhere["one process"] / stage)
        assert len(expected) == 3
        assert data_files(everywhere[runner] / stage) == expected


def test_the_result_is_read_with_ordinary_tools(everywhere: dict[str, Path], small_corpus: Path) -> None:
    import datasets

    output = everywhere["one process"]
    tokens = tz.read_table(str(output / "tokens"))
    assert tokens.schema.field("tokens").type == pa.list_(pa.int32())
    assert datasets.Dataset(tokens)[1]["tokens"] == tokens["tokens"][1].as_py()
    assert tokens.num_rows == 240
    table = pq.read_table(output / "embeddings")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    assert np.allclose(np.linalg.norm(vectors_of(table), axis=1), 1, atol=1e-5)
    loaded = datasets.load_dataset(
        "parquet", data_files=str(output / "embeddings" / "*.parquet"), cache_dir=str(output / "hub"), split="train"
    )
    assert loaded.num_rows == 240
    assert json.loads((output / "summary.json").read_text())["compress"]["rows_in"] == 240


def test_another_vocabulary_is_refused_before_any_work(
    small_corpus: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "tokenizer"
    other.mkdir()
    parts = json.loads((model_dir / "tokenizer.json").read_text())
    vocabulary = parts["model"]["vocab"]
    vocabulary["the"], vocabulary["of"] = vocabulary["of"], vocabulary["the"]
    (other / "tokenizer.json").write_text(json.dumps(parts))
    named = ["--input", small_corpus, "--output", tmp_path / "out", "--tokenizer", other, "--model", model_dir]
    assert here("run", *named) == 1
    assert "vocabulary" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def wikitext(
    shared_data: Path, model_dir: Path, tokzip: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Callable[[Path], list[object]]]:
    """The main job on the real validation and test splits; and the command line of it, with the same cache."""
    folder = tmp_path_factory.mktemp("wikitext")

    def argv(output: Path) -> list[object]:
        named = ["--input", f"{shared_data}/wikitext-103-v1/*.parquet", "--output", output]
        cache = f"memory:64MB,disk:{folder / 'cache'}:1GB"
        return ["run", *named, "--tokenizer", model_dir, "--model", model_dir, "--cache", cache]

    tokzip(*argv(folder / "first"), timeout=3000)
    return folder / "first", argv


def test_wikitext_reconciles_and_every_row_is_equal(
    wikitext: Any, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, _ = wikitext
    summary = json.loads((output / "summary.json").read_text())
    for stage in ("compress", "embed"):
        assert summary[stage]["rows_in"] == 8118
        assert summary[stage]["rows_out"] + summary[stage]["rows_dead"] == 8118
    assert here("verify", output, "--input", f"{shared_data}/wikitext-103-v1/*.parquet") == 0
    assert "every row is equal: 8,118 rows" in capsys.readouterr().out


def test_wikitext_vectors_are_those_of_plain_transformers(wikitext: Any, shared_data: Path, model_dir: Path) -> None:
    output, _ = wikitext
    for name in ("validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        texts = pq.read_table(shared_data / "wikitext-103-v1" / name)["text"]
        ours = vectors_of(pq.read_table(output / "embeddings" / name))
        assert len(ours) == len(texts)
        rows = np.linspace(0, len(texts) - 1, 250).astype(int)
        expected = plain_vectors(model_dir, texts.take(pa.array(rows)).to_pylist())
        cosines = (ours[rows] * expected).sum(1) / np.linalg.norm(ours[rows], axis=1)
        precision = json.loads((output / "summary.json").read_text())["embed"]["precision"]
        assert cosines.min() >= {"fp32": 0.99999, "bf16": 0.9998}[precision]


def test_wikitext_again_with_its_cache_runs_the_model_on_no_row(wikitext: Any, tmp_path: Path) -> None:
    output, argv = wikitext
    assert here(*argv(tmp_path / "second")) == 0
    summary = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert summary["embed"]["rows_computed"] == 0
    for stage in ("tokens", "embeddings"):
        assert data_files(tmp_path / "second" / stage) == data_files(output / stage)


def test_bits_a_token_on_wikipedia(shared_data: Path, model_dir: Path, tmp_path: Path) -> None:
    assert here("compress", "--input", shared_data / "enwiki", "--output", tmp_path, "--tokenizer", model_dir) == 0
    summary = json.loads((tmp_path / "_tokzip" / "summary.json").read_text())
    ids = tz.read_table(str(tmp_path), columns=["tokens"])["tokens"].combine_chunks().flatten().to_numpy()
    counts = np.bincount(ids)
    shares = counts[counts > 0] / len(ids)
    entropy = float(-(shares * np.log2(shares)).sum())
    blobs = pq.read_table(tmp_path, columns=["tokens"])["tokens"]
    stored = sum(c.storage.buffers()[2].size for c in blobs.chunks)
    assert summary["tokens"] == len(ids)
    assert summary["order0_entropy_bits"] == pytest.approx(entropy, abs=1e-4)
    assert 8 * stored / len(ids) == pytest.approx(summary["bits_per_token"], rel=1e-3)
    assert summary["bits_per_token"] <= 1.012 * entropy
