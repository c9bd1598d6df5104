"""`tokzip verify` finds whatever is wrong with a token data set; `tokzip inspect` shows what there is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards import parquet

import tokzip_core as tz
from pipelines.manifest import Manifest
from pipelines.map_splits import DEAD_LETTERS

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def made(tmp_path: Path, compress_all: Command) -> Path:
    """A data set of two shards, one of them of several splits."""
    parquet(tmp_path / "in" / "a.parquet", [f"hello {i}" for i in range(40)] + [None], row_group_size=10)
    parquet(tmp_path / "in" / "b.parquet", ["other", "words"])
    assert compress_all("--split-bytes", "200")[0] == 3
    assert len(list((tmp_path / "out").glob("a.part*"))) > 1
    return tmp_path / "out"


def rewrite(path: Path, change: Callable[[list[list[int]]], list[list[int]]], n_more: int = 0) -> None:
    """Write a token file anew with other tokens, as its writer would, into the manifest too."""
    file = pq.ParquetFile(path)
    tokens = change(tz.read_table(str(path))["tokens"].to_pylist())
    column = pa.array(tokens, pa.list_(pa.int32()))
    blobs = tz.encode(column, tz.file_codebook(str(path)))
    table = pa.table({"tokens": blobs, "n_tokens": pa.array([len(t) + n_more for t in tokens], pa.int32())})
    pq.write_table(table.replace_schema_metadata(file.metadata.metadata), path, **tz.parquet_options(table.schema))
    home = Manifest(str(path.parent))
    entry = home.get(path.name)
    assert entry is not None
    assert entry.output is not None
    home.commit(replace(entry, output=entry.output | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))


CHANGES: dict[str, tuple[Callable[[list[list[int]]], list[list[int]]], str]] = {
    "a changed token": (lambda t: [[*t[0][:-1], t[0][-1] + 1], *t[1:]], "b.parquet row 0: the stored tokens differ"),
    "a missing row": (lambda t: t[:-1], "b.parquet row 1: the stored tokens differ"),
    "an extra row": (lambda t: [*t, [7]], "b.parquet: has more rows than its shard"),
    "rows swapped": (lambda t: t[::-1], "b.parquet row 0: the stored tokens differ"),
    "no rows": (lambda t: [], "b.parquet row 0: the stored tokens differ"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_verify_finds(tmp_path: Path, made: Path, command: Command, what: str) -> None:
    change, said = CHANGES[what]
    assert command("verify", made, "--input", tmp_path / "in")[0] == 0
    rewrite(made / "b.parquet", lambda t: t)
    assert command("verify", made, "--input", tmp_path / "in")[0] == 0, "rewriting alone changes nothing"
    rewrite(made / "b.parquet", change)
    code, printed = command("verify", made, "--input", tmp_path / "in")
    assert code == 1
    assert said in printed
    assert command("verify", made, "--input", tmp_path / "in" / "a.parquet")[0] == 0, "of the shards asked about"


def test_verify_finds_a_wrong_number_of_tokens(tmp_path: Path, made: Path, command: Command) -> None:
    rewrite(made / "b.parquet", lambda t: t, n_more=1)
    code, printed = command("verify", made, "--input", tmp_path / "in")
    assert code == 1
    assert "b.parquet row 0: the stored tokens differ" in printed


def _write_anew(out: Path) -> None:
    """The same rows in other bytes."""
    table = pq.ParquetFile(out / "b.parquet").read()
    pq.write_table(table, out / "b.parquet", compression="none")


def _lose_a_split(out: Path) -> None:
    name = sorted(p.name for p in out.glob("a.part*"))[1]
    os.unlink(out / name)
    os.unlink(out / "_tokzip" / "manifest" / f"{name}.json")


def _damage_a_page(out: Path) -> None:
    data = bytearray((out / "b.parquet").read_bytes())
    data[4 + 40] ^= 1
    (out / "b.parquet").write_bytes(data)


def _forget_a_dead_letter(out: Path) -> None:
    (path,) = (out / "_tokzip" / "dead_letters").iterdir()
    pq.write_table(DEAD_LETTERS.empty_table(), path)


LOSSES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a split that is not there": (_lose_a_split, "splits are there"),
    "a file that is not there": (lambda out: os.unlink(out / "b.parquet"), "b.parquet: b.parquet: "),
    "a damaged file": (_damage_a_page, "b.parquet"),
    "a dead letter that is not there": (_forget_a_dead_letter, "row 40: null text, yet not a dead letter"),
    "other bytes than the manifest has": (_write_anew, "b.parquet: its SHA-256 is not that of the manifest"),
    "a stray file": (lambda out: os.link(out / "b.parquet", out / "c.parquet"), "c.parquet: not in the manifest"),
    "a shard never compressed": (
        lambda out: parquet(out.parent / "in" / "new.parquet", ["x"]),
        "in/new.parquet: never compressed",
    ),
    "a shard that has grown": (
        lambda out: parquet(out.parent / "in" / "b.parquet", ["other", "words", "more"], row_group_size=2),
        "in/b.parquet: has changed since it was compressed",
    ),
}


@pytest.mark.parametrize("what", LOSSES)
def test_verify_notices(tmp_path: Path, made: Path, command: Command, what: str) -> None:
    change, said = LOSSES[what]
    change(made)
    code, printed = command("verify", made, "--input", tmp_path / "in")
    assert code == 1
    assert said in printed


def test_inspect_shows_files_codebooks_and_data_sets(tmp_path: Path, made: Path, command: Command) -> None:
    code, printed = command("inspect", made / "b.parquet", "--rows", "1")
    assert code == 0
    assert "bits per token" in printed
    assert "row 0: " in printed
    assert "row 1: " not in printed
    assert "huffman" in printed
    code, printed = command("inspect", made / "_tokzip" / "codebook.tzc")
    assert code == 0
    assert tz.load_codebook(str(made / "_tokzip" / "codebook.tzc")).id in printed
    code, printed = command("inspect", made)
    assert code == 0
    assert "rows out                 42" in printed
    assert command("inspect", tmp_path / "in" / "a.parquet")[0] == 0, "any Parquet file"


@pytest.mark.parametrize("metadata", [{"tokzip.tokenizer": "{"}, {"tokzip.tokenizer": b"\xff"}])
def test_inspect_of_a_strange_file_is_an_error_that_names_it(tmp_path: Path, command: Command, metadata: Any) -> None:
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), tmp_path / "x.parquet")
    code, printed = command("inspect", tmp_path / "x.parquet")
    assert code == 1
    assert f"{tmp_path}/x.parquet" in printed


def test_a_damaged_file_is_inspected_to_an_error(made: Path, command: Command) -> None:
    _damage_a_page(made)
    code, printed = command("inspect", made / "b.parquet")
    assert code == 1
    assert f"{made}/b.parquet" in printed
