"""Shards as they come: cut short, with damaged footers, by the hundred, and of one row longer than most shards."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import zstandard
from shards import parquet

import tokzip_core as tz
from pipelines.storage import InputError

Command = Callable[..., tuple[int, str]]
TEXTS = [f"hello {i} {'again ' * (i % 7)}" for i in range(900)]
LINES = "".join(f'{{"text": "{t}"}}\n' for t in TEXTS).encode()
WHOLE = {
    "a.jsonl": lambda: LINES,
    "a.jsonl.gz": lambda: gzip.compress(LINES),
    "a.jsonl.zst": lambda: zstandard.compress(LINES),
    "a.txt": lambda: "\n".join(TEXTS).encode(),
    "a.txt.gz": lambda: gzip.compress("\n".join(TEXTS).encode()),
    "a.txt.zst": lambda: zstandard.compress("\n".join(TEXTS).encode()),
}


def rows_of(made: Any) -> list[list[int]]:
    rows: list[list[int]] = made.table()["tokens"].to_pylist() if any(e.output for e in made.entries) else []
    return rows


@pytest.mark.parametrize("name", ["a.parquet", *WHOLE])
def test_a_shard_cut_to_every_tenth_of_its_length(tmp_path: Path, compress: Any, tiny_json: str, name: str) -> None:
    """Either an error that names it, or what is there: never other rows, never a crash."""
    path = tmp_path / "in" / name
    if name == "a.parquet":
        whole = parquet(path, TEXTS, row_group_size=100).read_bytes()
    else:
        path.parent.mkdir()
        whole = WHOLE[name]()
    expected: list[list[int]] = []
    for tenth in range(10, -1, -1):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        folder = tmp_path / f"out{tenth}"
        problem = ""
        try:
            made = compress(path, output=folder, tokenizer_json=tiny_json)
        except InputError as e:
            problem = str(e)
        if problem:
            assert str(path) in problem
            assert tenth < 10
            made = compress(path, output=folder, tokenizer_json=tiny_json, skip_bad=True)
            assert [(d["shard"], d["row"]) for d in made.dead()] == [(str(path), None)]
            assert rows_of(made) == []
            continue
        rows = rows_of(made)
        if tenth == 10:
            expected = rows
            assert len(rows) == 900
        whole_rows = rows if "jsonl" in name else rows[:-1]  # the last line of plain text is what is there of it
        assert whole_rows == expected[: len(whole_rows)]
        assert name in ("a.jsonl", "a.txt") or tenth in (0, 10), "whether more was to come can be told"
        assert len(made.dead()) <= 1


@pytest.mark.parametrize("tenth", range(10))
def test_a_token_file_cut_to_every_tenth_of_its_length(
    tmp_path: Path, compress_all: Command, command: Command, tiny_model: Path, tenth: int
) -> None:
    parquet(tmp_path / "in" / "a.parquet", TEXTS)
    parquet(tmp_path / "in" / "b.parquet", ["hello"])
    assert compress_all()[0] == 0
    path = tmp_path / "out" / "a.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * tenth // 10])
    argv = ["embed", "--input", tmp_path / "out", "--output", tmp_path / "e", "--model", tiny_model, "--cache", "none"]
    code, printed = command(*argv)
    assert code == 1
    assert str(path) in printed
    if tenth == 5:
        assert command(*argv, "--on-bad-shard", "skip")[0] == 3
        assert pq.read_table(tmp_path / "e").num_rows == 1


def test_hundreds_of_shards_of_few_rows(tmp_path: Path, compress_all: Command, monkeypatch: Any) -> None:
    """Names are the same in all folders; some shards have no row."""
    for i in range(300):
        parquet(tmp_path / "in" / f"{i // 3}" / f"{i % 3}.parquet", pa.array(["hello"] * (i % 4), pa.string()))
    assert compress_all()[0] == 0
    assert tz.read_table(str(tmp_path / "out")).num_rows == sum(i % 4 for i in range(300))
    assert len(list((tmp_path / "out").rglob("[0-9].parquet"))) == 300
    monkeypatch.setattr("apache_beam.Pipeline.run", lambda *a, **k: pytest.fail("no job is needed"))
    assert compress_all()[0] == 0


@pytest.mark.slow
def test_a_row_of_ten_million_tokens(
    tmp_path: Path, compress_all: Command, command: Command, tiny_model: Path, tiny_json: str
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello", "hello " * 10_000_000, "a b"])
    code, printed = compress_all()
    assert code == 0, printed
    table = tz.read_table(str(tmp_path / "out"))
    assert table["n_tokens"].to_pylist() == [1, 10_000_000, 2]
    long = table["tokens"].combine_chunks()[1].values.to_numpy()
    assert np.unique(long).tolist() == [tokenizers.Tokenizer.from_str(tiny_json).token_to_id("hello")]
    argv = ["embed", "--input", tmp_path / "out", "--output", tmp_path / "e", "--model", tiny_model, "--cache", "none"]
    code, printed = command(*argv)
    assert code == 0, printed
    assert pq.read_table(tmp_path / "e").num_rows == 3
