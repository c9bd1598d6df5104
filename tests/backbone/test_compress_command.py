"""`tokzip compress` as a command, on the local runner within this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from shards import bytes_below, parquet

import tokzip_core as tz
from pipelines import compress, job, storage, train
from pipelines.manifest import Manifest
from pipelines.map_splits import DEAD_LETTERS
from pipelines.splits import Split
from tokzip_core.codecs.huffman import Huffman

Command = Callable[..., tuple[int, str]]


def data_of(folder: Path) -> dict[str, str]:
    """What must not depend on when or how often a job ran: all but timings."""
    return {n: h for n, h in bytes_below(folder).items() if "manifest/" not in n and not n.endswith("summary.json")}


def summary(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "_tokzip" / "summary.json").read_text())
    return found


def test_rows_in_are_rows_out_and_dead_letters_and_the_exit_code_says_so(
    tmp_path: Path, compress_all: Command, command: Command, tiny_json: str
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello", None, "a b"], id=[1, 2, 3])
    parquet(tmp_path / "in" / "b" / "c.parquet", ["", "hello hello"], id=[4, 5])
    code, printed = compress_all("--carry", "id")
    assert code == 3
    told = summary(tmp_path)
    assert (told["rows_in"], told["rows_out"], told["rows_dead"]) == (5, 4, 1)
    assert (told["shards"], told["splits"], told["splits_done_now"], told["tokens"]) == (2, 2, 2, 5)
    assert "rows dead" in printed
    table = tz.read_table(str(tmp_path / "out"))
    assert table["id"].to_pylist() == [1, 3, 4, 5]
    plain = tokenizers.Tokenizer.from_str(tiny_json)
    assert table["tokens"].to_pylist() == [plain.encode(t).ids for t in ("hello", "a b", "", "hello hello")]
    assert command("verify", tmp_path / "out", "--input", tmp_path / "in")[0] == 0


def test_a_second_run_does_nothing_and_leaves_the_bytes(
    tmp_path: Path, compress_all: Command, monkeypatch: Any
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello", "a b"])
    assert compress_all()[0] == 0
    before = bytes_below(tmp_path / "out")
    monkeypatch.setattr("apache_beam.Pipeline.run", lambda *a, **k: pytest.fail("no job is needed"))
    monkeypatch.setattr(Huffman, "tables", lambda *a: pytest.fail("no tables are needed"))
    assert compress_all()[0] == 0
    after = bytes_below(tmp_path / "out")
    assert {n for n in before if before[n] != after.get(n)} <= {"_tokzip/summary.json"}
    assert before.keys() == after.keys()
    assert summary(tmp_path)["splits_done_now"] == 0
    assert summary(tmp_path)["rows_out"] == 2


def test_a_second_run_takes_up_new_and_changed_shards_only(tmp_path: Path, compress_all: Command) -> None:
    for name in ("a", "b", "c"):
        parquet(tmp_path / "in" / f"{name}.parquet", [f"hello {name}"])
    assert compress_all()[0] == 0
    before = bytes_below(tmp_path / "out")
    parquet(tmp_path / "in" / "b.parquet", ["other", "text"])
    parquet(tmp_path / "in" / "d.parquet", ["hello d"])
    assert compress_all()[0] == 0
    after = bytes_below(tmp_path / "out")
    changed = {n for n in after if before.get(n) != after[n] and not n.startswith("_tokzip/")}
    assert changed == {"b.parquet", "d.parquet"}
    assert summary(tmp_path)["splits_done_now"] == 2
    assert tz.read_table(str(tmp_path / "out")).num_rows == 5


@pytest.mark.parametrize("why", ["the shard has changed", "splits are smaller", "the input is named from further up"])
def test_no_row_is_there_twice_when_a_shard_comes_in_other_splits(
    tmp_path: Path, compress_all: Command, command: Command, tokenizer_dir: Path, why: str
) -> None:
    texts = [f"hello {i}" for i in range(100)]
    parquet(tmp_path / "in" / "sub" / "a.parquet", [*texts, None], row_group_size=10)
    parquet(tmp_path / "in" / "sub" / "other.parquet", ["x"])
    assert compress_all("--split-bytes", "500")[0] == 3
    assert len(list((tmp_path / "out" / "sub").glob("a.part-*"))) > 1
    size = "500"
    if why == "the shard has changed":
        parquet(tmp_path / "in" / "sub" / "a.parquet", texts[:20], row_group_size=10)
    if why == "splits are smaller":
        size = "100"
    folder = tmp_path if "further" in why else tmp_path / "in"
    argv = ["--input", folder / "i*/sub/*.parquet" if "further" in why else folder, "--output", tmp_path / "out"]
    code, printed = command("compress", *argv, "--tokenizer", tokenizer_dir, "--split-bytes", size)
    assert code in (0, 3), printed
    rows = 20 if "changed" in why else 100
    assert tz.read_table(str(tmp_path / "out")).num_rows == rows + 1
    letters = sorted((tmp_path / "out" / "_tokzip" / "dead_letters").rglob("*.parquet"))
    assert sum(pq.read_table(p).num_rows for p in letters) == summary(tmp_path).get("rows_dead", 0)
    assert command("verify", tmp_path / "out", "--input", tmp_path / "in")[0] == 0


def test_a_changed_option_is_an_error_that_names_both_values(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"], body=["x"], id=[1])
    assert compress_all()[0] == 0
    before = data_of(tmp_path / "out")
    for argv, said in (
        (["--text-column", "body"], "text_column = text, and is now asked for text_column = body"),
        (["--carry", "id"], "carry = , and is now asked for carry = id"),
    ):
        code, printed = compress_all(*argv)
        assert code == 1
        assert said in printed
    assert data_of(tmp_path / "out") == before


def test_another_tokenizer_is_refused(tmp_path: Path, compress_all: Command, command: Command, model_dir: Path) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    assert compress_all()[0] == 0
    code, printed = command(
        "compress", "--input", tmp_path / "in", "--output", tmp_path / "out", "--tokenizer", model_dir
    )
    assert code == 1
    assert "was made with tokenizer = " in printed


def test_a_missing_column_names_shard_and_columns_before_any_work(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"], id=[1])
    pq.write_table(pa.table({"body": ["x"], "id": [2]}), tmp_path / "in" / "b.parquet")
    code, printed = compress_all()
    assert code == 1
    assert f"{tmp_path}/in/b.parquet: no column 'text'; there are body, id" in printed
    assert not (tmp_path / "out").exists()
    code, printed = compress_all("--carry", "ID")
    assert "a.parquet: no column 'ID'; there are text, id (and 1 more bad shards)" in printed


def test_bad_shards_fail_the_job_or_are_dead_letters(tmp_path: Path, compress_all: Command, command: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    whole = parquet(tmp_path / "in" / "b.parquet", ["x" * 1000] * 3).read_bytes()
    (tmp_path / "in" / "b.parquet").write_bytes(whole[:700])
    data = bytearray(parquet(tmp_path / "in" / "c.parquet", ["some text"] * 9).read_bytes())
    data[data.index(b"some text")] ^= 1  # shows only when the rows are read
    (tmp_path / "in" / "c.parquet").write_bytes(data)
    code, printed = compress_all()
    assert code == 1
    assert "in/b.parquet: unreadable" in printed
    os.rename(tmp_path / "in" / "b.parquet", tmp_path / "b.parquet")
    code, printed = compress_all()
    assert code == 1
    assert "in/c.parquet: unreadable" in printed
    os.rename(tmp_path / "b.parquet", tmp_path / "in" / "b.parquet")
    code, printed = compress_all("--on-bad-shard", "skip")
    assert code == 3
    assert (summary(tmp_path)["bad_shards"], summary(tmp_path)["rows_out"]) == (2, 1)
    letters = [pq.read_table(p) for p in sorted((tmp_path / "out" / "_tokzip" / "dead_letters").iterdir())]
    assert [t.schema == DEAD_LETTERS for t in letters] == [True, True]
    assert [t["shard"][0].as_py() for t in letters] == [f"{tmp_path}/in/{n}.parquet" for n in "bc"]
    code, printed = command("verify", tmp_path / "out", "--input", tmp_path / "in")
    assert code == 0
    assert "unreadable: 2 shards" in printed


def test_nothing_but_bad_shards_or_nothing_at_all(tmp_path: Path, compress_all: Command, command: Command) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(b"junk")
    assert compress_all("--on-bad-shard", "skip")[0] == 3
    assert summary(tmp_path)["rows_in"] == 0
    os.unlink(tmp_path / "in" / "a.parquet")
    parquet(tmp_path / "in" / "b.parquet", pa.array([], pa.string()))
    (tmp_path / "in" / "c.jsonl").write_bytes(b"")
    assert compress_all()[0] == 0
    assert summary(tmp_path)["rows_in"] == 0
    assert tz.read_table(str(tmp_path / "out")).num_rows == 0
    assert command("verify", tmp_path / "out", "--input", tmp_path / "in")[0] == 0


def test_the_output_may_not_be_the_input(tmp_path: Path, command: Command, tokenizer_dir: Path) -> None:
    parquet(tmp_path / "a.parquet", ["hello"])
    argv = ["--input", tmp_path / "a.parquet", "--output", tmp_path, "--tokenizer", tokenizer_dir]
    code, printed = command("compress", *argv)
    assert code == 1
    assert "the input lies in the output folder" in printed


def test_a_codebook_is_reused_and_not_mixed(
    tmp_path: Path, compress_all: Command, command: Command, tokenizer_dir: Path
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello hello hello"] * 50)
    assert compress_all()[0] == 0
    trained = tmp_path / "out" / "_tokzip" / "codebook.tzc"
    parquet(tmp_path / "in2" / "b.parquet", ["words never seen"])
    argv = ["compress", "--input", tmp_path / "in2", "--tokenizer", tokenizer_dir, "--output"]
    assert command(*argv, tmp_path / "out2", "--codebook", trained)[0] == 0
    code, printed = command(*argv, tmp_path / "out4", "--codebook", trained, "--codec", "context")
    assert code == 2
    assert "of codec huffman" in printed
    assert (tmp_path / "out2" / "_tokzip" / "codebook.tzc").read_bytes() == trained.read_bytes()
    assert not (tmp_path / "out2" / "_tokzip" / "training.json").exists(), "nothing was trained"
    assert command("verify", tmp_path / "out2", "--input", tmp_path / "in2")[0] == 0
    assert command(*argv, tmp_path / "out3")[0] == 0
    code, printed = command(*argv, tmp_path / "out3", "--codebook", trained)
    assert code == 1
    ids = [tz.load_codebook(str(tmp_path / o / "_tokzip" / "codebook.tzc")).id for o in ("out3", "out")]
    assert f"has codebook {ids[0]}, and is now asked for {ids[1]}" in printed
    assert command(*argv, tmp_path / "out3")[0] == 0, "and the data set is as it was"


@pytest.mark.parametrize("data", [None, b"", b"no codebook", b"TKZC\x01\xff"])
def test_a_codebook_that_cannot_be_read(tmp_path: Path, compress_all: Command, data: bytes | None) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    if data is not None:
        (tmp_path / "c.tzc").write_bytes(data)
    code, printed = compress_all("--codebook", tmp_path / "c.tzc")
    assert code == 1
    assert str(tmp_path / "c.tzc") in printed


def test_all_of_a_small_corpus_is_trained_on_however_uneven_its_shards(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "large.parquet", [f"hello {i:06d}" for i in range(60_000)])
    for i in range(9):
        parquet(tmp_path / "in" / f"small-{i}.parquet", ["a b c"])
    assert compress_all("--train-bytes", "2MB")[0] == 0
    told = summary(tmp_path)
    assert told["trained_on_tokens"] == told["tokens"]


def test_training_is_bounded(tmp_path: Path, compress_all: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.reading.BLOCK_BYTES", 10_000)
    for i in range(10):
        parquet(tmp_path / "in" / f"{i}.parquet", [f"hello {i:06d}" for i in range(10_000)], row_group_size=1_000)
    assert compress_all("--train-bytes", "100KB")[0] == 0
    told = summary(tmp_path)
    assert 0.02 * told["tokens"] < told["trained_on_tokens"] < 0.2 * told["tokens"]


def test_counting_a_share_of_a_split(tmp_path: Path, compress: Any, tiny_json: str) -> None:
    made = compress(parquet(tmp_path / "a.parquet", ["a b"] * 10), tokenizer_json=tiny_json)
    (split,) = made.planned
    assert train.count_tokens(split, made.stage, "huffman", 1.0, False).tokens == 20
    bad = Split(**{**split.__dict__, "url": str(tmp_path / "none.parquet")})
    assert train.count_tokens(bad, made.stage, "huffman", 1.0, True).tokens == 0
    with pytest.raises(storage.InputError, match=r"none\.parquet"):
        train.count_tokens(bad, made.stage, "huffman", 1.0, False)


def test_an_fsspec_store_as_input_and_output(tmp_path: Path, command: Command, tokenizer_dir: Path) -> None:
    store = fsspec.filesystem("memory")
    store.store.clear()
    path = parquet(tmp_path / "a.parquet", ["hello", None], row_group_size=1)
    for name in ("x/a.parquet", "y/b.parquet"):
        store.pipe_file(f"/bucket/in/{name}", path.read_bytes())
    argv = [
        "--input",
        "memory://bucket/in/*/*.parquet",
        "--output",
        "memory://bucket/out",
        "--tokenizer",
        tokenizer_dir,
    ]
    for done in (2, 0):
        assert command("compress", *argv)[0] == 3
        told = storage.read_json("memory://bucket/out/_tokzip/summary.json")
        assert (told["splits_done_now"], told["rows_in"], told["rows_out"], told["rows_dead"]) == (done, 4, 2, 2)
    assert sorted(n for n in store.find("/bucket/out") if "_tokzip" not in n) == [
        "/bucket/out/x/a.parquet",
        "/bucket/out/y/b.parquet",
    ]
    assert tz.read_table("memory://bucket/out").num_rows == 2
    assert Manifest(storage.absolute("memory://bucket/out")).names() == ["x/a.parquet", "y/b.parquet"]
    assert command("verify", "memory://bucket/out", "--input", "memory://bucket/in")[0] == 0
    assert command("inspect", "memory://bucket/out")[0] == 0
    code, printed = command("compress", "--input", "memory://bucket/out", *argv[2:])
    assert code == 1
    assert "the input lies in the output folder" in printed


def test_a_runner_that_drops_splits_is_caught(tmp_path: Path, compress_all: Command, monkeypatch: Any) -> None:
    for i in range(3):
        parquet(tmp_path / "in" / f"{i}.parquet", ["hello"])
    real = job.run
    monkeypatch.setattr(
        compress.job,
        "run",
        lambda inv, out, planned, build: real(inv, out, planned, lambda p, todo, most: build(p, todo[1:], most)),
    )
    code, printed = compress_all()
    assert code == 1
    assert "1 splits are not: ['0.parquet']" in printed
