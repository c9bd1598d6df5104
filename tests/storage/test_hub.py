"""Corpus, tokenizer and model by their names on the hub: the path that most users take, against a server of its API."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, serve

pytestmark = pytest.mark.slow
DATASET, MODEL, TOKENIZER = "Salesforce/wikitext", "sentence-transformers/all-MiniLM-L6-v2", "bert-base-uncased"
INPUT = f"hf://datasets/{DATASET}/wikitext-103-v1/train-*.parquet"
Run = Callable[..., Any]


@pytest.fixture
def hub(corpus: Path, tokenizer_folder: Path, encoder_folder: Path, tmp_path: Path) -> Iterator[Hub]:
    """The three repositories; the data set's folder is the test's own to change."""
    dataset = tmp_path / "dataset"
    shutil.copytree(corpus, dataset / "wikitext-103-v1")
    shutil.copy(corpus / "train-00000-of-00003.parquet", dataset / "wikitext-103-v1" / "test-00000-of-00001.parquet")
    (dataset / "README.md").write_text("# WikiText\n")
    repositories = {
        f"datasets/{DATASET}": dataset,
        f"models/{MODEL}": encoder_folder,
        f"models/google-bert/{TOKENIZER}": tokenizer_folder,
    }
    with serve(Hub(repositories, moved={TOKENIZER: f"google-bert/{TOKENIZER}"})) as running:
        yield running


@pytest.fixture
def run(hub: Hub, tokzip: Run, options: list[str], tmp_path: Path) -> Run:
    """`run("out")`: `tokzip run` by name, with nothing of the hub on this machine but what earlier calls fetched."""
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    env |= {"HF_HUB_ETAG_TIMEOUT": "300", "HF_HUB_DOWNLOAD_TIMEOUT": "300"}  # the server is a thread of this process

    def call(output: str, *, input: str = INPUT, model: str = MODEL, tokenizer: str = TOKENIZER) -> Any:
        named = ["--input", input, "--output", tmp_path / output, "--tokenizer", tokenizer, "--model", model]
        return tokzip("run", *named, *options, check=False, env=env)

    return call


def data(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("*/*.parquet"))}


def times(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in data(folder)}


def test_by_name_as_by_path_and_again_only_what_changed(
    hub: Hub, run: Run, local_run: dict[str, bytes], tmp_path: Path
) -> None:
    done = run("out")
    assert done.returncode == 0, done.stderr
    assert data(tmp_path / "out") == local_run
    assert f"HEAD /{TOKENIZER}/resolve/main/tokenizer.json" in hub.requests, "by the old name, and redirected"

    shards = hub.repositories[f"datasets/{DATASET}"] / "wikitext-103-v1"
    shutil.copy(shards / "train-00002-of-00003.parquet", shards / "train-00001-of-00003.parquet")
    before, written = len(hub.requests), times(tmp_path / "out")
    done = run("out")
    assert done.returncode == 0, done.stderr
    after, files = times(tmp_path / "out"), data(tmp_path / "out")
    assert {n for n in files if after[n] != written.get(n)} == {n for n in files if "train-00001" in n}
    for stage in ("tokens", "embeddings"):
        changed, like = ([b for n, b in files.items() if f"{stage}/train-0000{i}" in n] for i in (1, 2))
        assert changed == like
    assert not [r for r in hub.requests[before:] if r.startswith("GET") and "safetensors" in r], "the model is here"


@pytest.mark.parametrize("wrong", ["data set", "tokenizer", "model"])
def test_a_name_that_the_hub_does_not_have(run: Run, tmp_path: Path, wrong: str) -> None:
    name = "nobody/nothing"
    names = {
        "data set": {"input": f"hf://datasets/{name}/*.parquet"},
        "tokenizer": {"tokenizer": name},
        "model": {"model": name},
    }
    done = run("out", **names[wrong])
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("tokzip run: error: ")]
    assert name in line
    assert not (tmp_path / "out").exists()
