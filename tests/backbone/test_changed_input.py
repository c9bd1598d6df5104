"""Shards that come, change and go between runs: what is redone, retired, kept and said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from shards import bytes_below, parquet

import tokzip_core as tz
from pipelines import splits, storage
from pipelines.manifest import Manifest
from pipelines.map_splits import run_split
from pipelines.reading import SUFFIXES

Command = Callable[..., tuple[int, str]]


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "_tokzip" / "summary.json").read_text())
    return found


@pytest.fixture
def out(tmp_path: Path, compress_all: Command) -> Path:
    """A data set of three shards in two folders, one with a dead letter, one of several splits."""
    parquet(tmp_path / "in" / "a.parquet", [f"hello {i}" for i in range(40)], row_group_size=10)
    parquet(tmp_path / "in" / "sub" / "b.parquet", ["other", None])
    parquet(tmp_path / "in" / "sub" / "c.parquet", ["words"])
    assert compress_all("--split-bytes", "200")[0] == 3
    assert len(list((tmp_path / "out").glob("a.part*"))) > 1
    return tmp_path / "out"


def names(out: Path) -> list[str]:
    """Files of the data, of the dead letters and of the manifest, by name."""
    found = [n for n in bytes_below(out) if n.startswith(("_tokzip/manifest/", "_tokzip/dead")) or "_tokzip" not in n]
    return sorted(n.removeprefix("_tokzip/") for n in found)


C = ["manifest/sub/c.parquet.json", "sub/c.parquet"]


def test_what_was_made_of_vanished_shards_is_removed_and_said(tmp_path: Path, out: Path, compress_all: Command) -> None:
    os.unlink(tmp_path / "in" / "a.parquet")
    os.unlink(tmp_path / "in" / "sub" / "b.parquet")
    code, printed = compress_all()
    assert code == 0, "the dead letter went too"
    assert names(out) == C
    assert "2 shards are gone; what was made of them was removed: " + str(tmp_path / "in" / "a.parquet") in printed
    assert (summary(out)["shards_gone"], summary(out)["splits_done_now"], summary(out)["rows_out"]) == (2, 0, 1)
    assert compress_all()[0] == 0
    assert summary(out)["shards_gone"] == 0
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    assert compress_all()[0] == 0
    assert tz.read_table(str(out)).num_rows == 2


def test_only_shards_that_are_not_committed_as_they_are_now_are_opened(
    tmp_path: Path, out: Path, compress_all: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with nothing to do takes seconds, whatever the corpus: it must not read every shard's footer."""
    opened: list[str] = []
    before, plan_shard = names(out), splits.plan_shard
    monkeypatch.setattr(splits, "plan_shard", lambda name, *rest: opened.append(name) or plan_shard(name, *rest))

    def again(*options: str) -> list[str]:
        opened.clear()
        assert compress_all(*options)[0] == 3
        assert names(out) == before
        return sorted(opened)

    assert again("--split-bytes", "200") == []
    assert again("--split-bytes", "199") == ["a.parquet"], "one split stays one; others may be cut elsewhere"
    (out / "_tokzip" / "manifest" / "a.part-00001-of-00004.parquet.json").unlink()
    parquet(tmp_path / "in" / "sub" / "c.parquet", ["words, and more"])
    assert again("--split-bytes", "200") == ["a.parquet", "sub/c.parquet"]
    planned = splits.plan(splits.find_shards([str(tmp_path / "in")]), lambda schema: ["text"], 200)
    known = Manifest(str(out)).planned(200)
    assert [s for name, f in splits.find_shards([str(tmp_path / "in")]) for s in known(name, f)] == planned


def test_they_are_kept_where_that_is_asked_for(tmp_path: Path, out: Path, compress_all: Command) -> None:
    before = names(out)
    os.unlink(tmp_path / "in" / "a.parquet")
    code, printed = compress_all("--on-vanished-shard", "keep", "--split-bytes", "200")
    assert (code, names(out)) == (3, before)
    assert "what was made of them is kept" in printed


@pytest.mark.parametrize("pattern", ["sub", "sub/*.parquet", "sub/c.parquet", "*/?.parquet"])
def test_a_run_over_some_of_the_shards_retires_none_of_the_others(
    tmp_path: Path, out: Path, command: Command, tokenizer_dir: Path, pattern: str
) -> None:
    os.unlink(tmp_path / "in" / "a.parquet")
    argv = ["--input", tmp_path / "in" / pattern, "--output", out, "--tokenizer", tokenizer_dir]
    code, printed = command("compress", *argv)
    assert code in (0, 3), printed
    assert "are gone" not in printed
    assert [n for n in names(out) if n.startswith("a.part")], "nobody asked for a.parquet"


def test_what_cannot_be_looked_at_is_not_gone(tmp_path: Path, out: Path, command: Command, monkeypatch: Any) -> None:
    """A listing that leaves a shard out is not believed until the store says the same of the shard itself."""
    before = names(out)
    found = splits.find_shards
    monkeypatch.setattr(splits, "find_shards", lambda inputs: [s for s in found(inputs) if s[0] != "a.parquet"])
    argv = ["compress", "--input", tmp_path / "in", "--output", out, "--tokenizer", tmp_path / "tokenizer"]
    assert command(*argv)[0] == 3
    assert names(out) == before
    monkeypatch.setattr(storage, "is_gone", lambda url: (_ for _ in ()).throw(PermissionError(13, "denied", url)))
    assert command(*argv)[0] == 1
    assert names(out) == before


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, out: Path, compress_all: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's walk passes over it, as if it were empty: its shards would be taken for gone."""
    before, ls = names(out), LocalFileSystem.ls

    def refuse(self: LocalFileSystem, path: str, *args: Any, **kw: Any) -> Any:
        if path.rstrip("/").endswith("in/sub"):  # root, whom tests may run as, may list any
            raise PermissionError(13, "Permission denied", path)
        return ls(self, path, *args, **kw)

    monkeypatch.setattr(LocalFileSystem, "ls", refuse)
    code, printed = compress_all()
    assert (code, names(out)) == (1, before)
    assert f"cannot list {tmp_path}/in: " in printed


def test_an_input_that_finds_nothing_removes_nothing(tmp_path: Path, out: Path, compress_all: Command) -> None:
    before = names(out)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    code, printed = compress_all()
    assert (code, names(out)) == (1, before)
    assert "no file matches" in printed


def test_a_shard_that_moved_takes_its_place_and_a_namesake_does_not(
    tmp_path: Path, out: Path, command: Command, tokenizer_dir: Path
) -> None:
    before = bytes_below(out)
    parquet(tmp_path / "in2" / "sub" / "c.parquet", ["another day"])
    argv = ["compress", "--input", tmp_path / "in2", "--output", out, "--tokenizer", tokenizer_dir]
    in2 = [*argv[:2], tmp_path / "in2" / "sub*/*.parquet", *argv[3:]]
    for named in (in2, argv):
        code, printed = command(*named)
        assert code == 1
        assert (
            f"{tmp_path}/in2/sub/c.parquet would be written to sub/c.parquet, which was made from {tmp_path}/in/sub"
            in printed
        )
    after = bytes_below(out)
    assert {n for n in after if after[n] != before.get(n)} == {"_tokzip/summary.json"}, "which says that the run failed"
    assert after.keys() == before.keys()
    os.unlink(tmp_path / "in" / "sub" / "c.parquet")
    assert command(*argv)[0] == 0
    assert Manifest(str(out)).get("sub/c.parquet").source["url"] == f"{tmp_path}/in2/sub/c.parquet"


@pytest.mark.parametrize(
    ("pattern", "url", "found"),
    [
        ("memory://b/in", "memory://b/in/x/a.parquet", True),
        ("memory://b/in", "memory://b/in2/a.parquet", False),
        ("memory://b/in", "memory://b/in/a.csv", False),
        ("memory://b/in", "memory://b/in/_tokzip/a.parquet", False),
        ("memory://b/in/*.parquet", "memory://b/in/a.parquet", True),
        ("memory://b/in/*.parquet", "memory://b/in/x/a.parquet", False),
        ("memory://b/in/**/*.parquet", "memory://b/in/x/y/a.parquet", True),
        ("memory://b/in/**/*.parquet", "memory://b/in/x/.y/a.parquet", False),
        ("memory://b/in/*", "/b/in/a", False),
        ("/b/in", "memory://b/in/a.parquet", False),
        ("/b/in/[ab].parquet", "/b/in/a.parquet", True),
        ("/b/in/[ab].parquet", "/b/in/c.parquet", False),
    ],
)
def test_what_an_input_would_find(pattern: str, url: str, found: bool) -> None:
    assert storage.would_find(pattern, SUFFIXES)(storage.absolute(url)) is found


# ---- a crash between two steps


@pytest.mark.parametrize("step", range(4))
def test_a_crash_while_a_split_is_removed_leaves_nothing_that_is_taken_for_done(
    tmp_path: Path, compress: Any, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", ["a", None])
    made = compress(path)
    home, steps = Manifest(made.output), []

    def counted(real: Any) -> Any:
        def call(*args: Any) -> Any:
            if len(steps) == step:
                raise KeyboardInterrupt
            steps.append(real)
            return real(*args)

        return call

    with monkeypatch.context() as m:
        m.setattr(storage, "remove", counted(storage.remove))
        m.setattr(storage, "publish_json", counted(storage.publish_json))
        with pytest.raises(KeyboardInterrupt):
            home.remove(made.entries[0])
    assert home.names() == ["a.parquet"], "until its files are gone, somebody knows of them"
    again = run_split(made.planned[0], made.stage, made.output)
    assert again.output == made.entries[0].output
    assert made.table().num_rows == 1
    home.remove(again)
    assert names(Path(made.output)) == []


def test_a_shard_that_changes_and_changes_back_while_runs_are_killed(
    tmp_path: Path, compress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With etags a shard's version comes back with its content: the old entry must not vouch for the new file."""
    path = parquet(tmp_path / "in" / "a.parquet", ["a", "b"])
    whole, stat = path.read_bytes(), path.stat()
    first = compress(path)
    parquet(path, ["c", "d", "e"])
    commit = Manifest.commit

    def die(home: Manifest, entry: Any) -> None:
        if entry.source["version"]:
            raise KeyboardInterrupt
        commit(home, entry)

    with monkeypatch.context() as m:
        m.setattr(Manifest, "commit", die)
        with pytest.raises(KeyboardInterrupt):
            compress(path)
    assert tz.read_table(first.output).num_rows == 3, "the file is of the changed shard"
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert compress(path).table().num_rows == 2


# ---- limits on dead letters


@pytest.mark.parametrize(
    ("limit", "code"), [("0", 1), ("1", 1), ("2", 3), ("19%", 1), ("20%", 3), ("100%", 3), ("0%", 1)]
)
def test_too_many_dead_letters_fail_the_job(tmp_path: Path, compress_all: Command, limit: str, code: int) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["a"] * 8 + [None, None])
    done, printed = compress_all("--max-dead-letters", limit)
    assert done == code
    assert ("error" in printed) == (code == 1)
    if code == 1:
        assert f"2 of 10 rows are dead letters, more than --max-dead-letters {limit} allows" in printed
    assert tz.read_table(str(tmp_path / "out")).num_rows == 8, "what is committed stays"
    assert summary(tmp_path / "out")["rows_dead"] == 2
    assert compress_all()[0] == 3
    assert summary(tmp_path / "out")["splits_done_now"] == 0


def test_a_bad_shard_counts_as_a_dead_letter(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["a"] * 9)
    (tmp_path / "in" / "b.parquet").write_bytes(b"junk")
    for limit, code in (("0", 1), ("9%", 1), ("10%", 3), ("1", 3)):
        assert compress_all("--on-bad-shard", "skip", "--max-dead-letters", limit)[0] == code


@pytest.mark.parametrize(("limit", "committed"), [("5", 2), ("10%", 2), ("99%", 10)])
def test_a_job_that_can_only_fail_stops_early(
    tmp_path: Path, compress_all: Command, limit: str, committed: int
) -> None:
    """Of ten shards of four dead rows each: 10 % are four, or five where one shard is a dead letter as a whole."""
    for i in range(10):
        parquet(tmp_path / "in" / f"{i}.parquet", pa.array([None] * 4, pa.string()))
    for _ in range(2):  # again: what is committed counts, and nothing more is begun
        code, printed = compress_all("--max-dead-letters", limit)
        assert code == 1
        early = "more rows than --max-dead-letters allows are dead letters already"
        assert (early if committed < 10 else "40 of 40 rows are dead letters") in printed
        assert len(Manifest(str(tmp_path / "out")).names()) == committed


@pytest.mark.parametrize("limit", ["-1", "1.5", "x", "101%", "%", ""])
def test_a_limit_that_is_none(compress_all: Command, limit: str) -> None:
    code, printed = compress_all(f"--max-dead-letters={limit}")
    assert code == 2
    assert "--max-dead-letters" in printed


def test_a_data_file_that_got_lost_is_made_anew(out: Path, compress_all: Command) -> None:
    before = {n: data for n, data in bytes_below(out).items() if "_tokzip" not in n}
    os.unlink(out / "sub" / "c.parquet")
    os.unlink(next(out.glob("a.part*")))
    code, printed = compress_all("--split-bytes", "200")
    assert (code, summary(out)["splits_done_now"]) == (3, 2)
    assert "2 committed files are no longer there, and are made anew" in printed
    assert {n: data for n, data in bytes_below(out).items() if "_tokzip" not in n} == before


def test_a_codebook_that_got_lost_is_put_back_and_another_in_its_place_is_refused(
    tmp_path: Path, out: Path, compress_all: Command
) -> None:
    place = out / "_tokzip" / "codebook.tzc"
    codebook = place.read_bytes()
    place.unlink()
    parquet(tmp_path / "in" / "new.parquet", ["more"])
    assert compress_all("--split-bytes", "200")[0] == 3
    assert place.read_bytes() == codebook
    other = tz.train(pa.array([[1, 2, 3]]))
    place.write_bytes(other.to_bytes())
    code, printed = compress_all("--split-bytes", "200")
    assert code == 1
    assert other.id in printed
    assert tz.Codebook.from_bytes(codebook).id in printed


def test_settings_that_got_lost_are_not_made_up(out: Path, compress_all: Command) -> None:
    (out / "_tokzip" / "dataset.json").unlink()
    code, printed = compress_all("--split-bytes", "200")
    assert code == 1
    assert "dataset.json is gone" in printed
