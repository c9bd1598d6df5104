"""What the backbone's tests share: shards of every form, and stage 1 without Beam and without a command line."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tokzip_core as tz
from pipelines import cli, splits, storage
from pipelines.compress_stage import CompressStage
from pipelines.manifest import Entry, Manifest
from pipelines.map_splits import run_split
from pipelines.tokenizing import Tokenizer, load_tokenizer


@pytest.fixture(scope="session")
def bert_json(model_dir: Path) -> str:
    return load_tokenizer(str(model_dir))


@pytest.fixture(scope="session")
def bert(bert_json: str) -> Tokenizer:
    """The reference: what every other way of tokenizing is compared with."""
    return Tokenizer(bert_json, "huggingface")


@pytest.fixture(scope="session")
def codebook(bert: Tokenizer) -> tz.Codebook:
    return tz.train(bert.encode(pa.array(["the quick brown fox jumps over the lazy dog", "a b c, d e f."])))


@dataclass
class TokenDataSet:
    """A token data set made split by split in this process."""

    output: str
    stage: CompressStage
    planned: list[splits.Split]
    entries: list[Entry]

    def table(self) -> pa.Table:
        return tz.read_table(self.output)

    def dead(self) -> list[dict[str, Any]]:
        found = []
        for e in self.entries:
            if e.dead_letters:
                found += pq.read_table(f"{self.output}/{e.dead_letters['path']}").to_pylist()
        return found


Compress = Callable[..., TokenDataSet]
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def compress(tmp_path: Path, bert_json: str, codebook: tz.Codebook) -> Compress:
    """`compress(inputs…, **options)`: stage 1 over the shards, into `output` (default a folder below tmp_path)."""

    def run(
        *inputs: object,
        output: object = tmp_path / "out",
        carry: tuple[str, ...] = (),
        split_bytes: int = 1 << 30,
        skip_bad: bool = False,
        engine: str = "auto",
        tokenizer_json: str = bert_json,
        text_column: str = "text",
    ) -> TokenDataSet:
        url = storage.absolute(str(output))
        stage = CompressStage(url, text_column, carry, engine, uuid.uuid4().hex)
        home = Manifest(url)
        storage.publish_bytes(tokenizer_json.encode(), url, home.place("tokenizer.json"))
        storage.publish_bytes(codebook.to_bytes(), url, home.place("codebook.tzc"))
        planned = splits.plan(splits.find_shards(map(str, inputs)), stage.columns, split_bytes, skip_bad)
        return TokenDataSet(url, stage, planned, [run_split(s, stage, url, skip_bad) for s in planned])

    return run


@pytest.fixture
def tokenizer_dir(tmp_path: Path, tiny_json: str) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tiny_json)
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("verify", …)` in this process: its exit code, and all that it printed."""

    def run(*argv: object) -> tuple[int, str]:
        capsys.readouterr()
        code = cli.main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out + captured.err

    return run


@pytest.fixture
def compress_all(tmp_path: Path, tokenizer_dir: Path, command: Command) -> Command:
    """Compress tmp_path/in into tmp_path/out."""
    return lambda *more: command(
        "compress", "--input", tmp_path / "in", "--output", tmp_path / "out", "--tokenizer", tokenizer_dir, *more
    )
