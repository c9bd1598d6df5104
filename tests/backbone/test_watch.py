"""The launcher of a watch, shard by shard in this process: what it takes, redoes, refuses and retires, and when."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards import bytes_below, parquet

import tokzip_core as tz
from pipelines import compress, embed, job, lock, options, splits, storage, watch, watch_queue
from pipelines.compress_stage import CompressStage
from pipelines.manifest import Manifest

Command = Callable[..., tuple[int, str]]


class Bench:
    """A watch on tmp_path/in, of which the test is the clock (each tick looks) and the workers."""

    def __init__(self, folder: Path, stage: CompressStage, **args: Any) -> None:
        self.input, self.output, self.stage = folder / "in", folder / "out", stage
        named = {"input": [str(self.input)], "watch_interval": 1e-9, "on_vanished_shard": "retire"}
        namespace = argparse.Namespace(**named | {"max_dead_letters": None} | args)
        self.invocation = options.Invocation(namespace, [], stop=watch.Stop())
        self.watcher = watch.Watcher(self.invocation, str(self.output), lambda: job.find(namespace.input, "nowhere"))
        self.watcher.plan = lambda shard: splits.plan([shard], stage.columns, 200, True)
        self.queue = watch_queue.Queue(str(self.output))
        self.queue.open()

    def tick(self, times: int = 1) -> list[str]:
        """What is in the queue after so many ticks without a worker: the splits' names."""
        for _ in range(times):
            self.watcher.tick(self.queue)
        return sorted(s.name for s in self.watcher.queued.values())

    def worker(self) -> watch_queue.RunQueued:
        run = watch_queue.RunQueued(self.stage, str(self.output), skip_bad=True)
        run.setup()
        return run

    def work(self) -> None:
        """Until there is nothing more to do."""
        run = self.worker()
        self.tick()
        for _ in range(50):
            if not self.tick():
                return
            for found in watch_queue.poll(self.queue.url).outputs:
                list(run.process((self.queue.url, found.value)))
        raise AssertionError("it goes on and on")

    def texts(self) -> int:
        return tz.read_table(str(self.output)).num_rows

    def data(self) -> list[str]:
        return sorted(n for n in bytes_below(self.output) if "_tokzip" not in n or "/dead_letters/" in n)


@pytest.fixture
def bench(tmp_path: Path, tiny_json: str, tokenizer_dir: Path, codebook: tz.Codebook) -> Callable[..., Bench]:
    def make(**args: Any) -> Bench:
        output = str(tmp_path / "out")
        home = Manifest(output)
        storage.publish_bytes(tiny_json.encode(), output, home.place("tokenizer.json"))
        storage.publish_bytes(codebook.to_bytes(), output, home.place("codebook.tzc"))
        return Bench(tmp_path, CompressStage(output, "text", (), "auto", uuid.uuid4().hex), **args)

    return make


def test_a_shard_is_taken_when_nobody_writes_it_any_more(bench: Any, tmp_path: Path) -> None:
    b = bench()
    assert b.tick() == [], "there is not even a folder"
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    for _ in range(3):
        with path.open("a") as f:
            f.write('{"text": "hello"}\n')
        assert b.tick() == [], "it has grown since the last look"
    assert b.tick() == ["a.jsonl.parquet"]
    assert b.tick(3) == ["a.jsonl.parquet"], "once"
    b.work()
    assert b.texts() == 3
    assert list((tmp_path / "out" / "_tokzip" / "queue").iterdir()) == [Path(f"{b.queue.url}.open")]


def test_it_makes_what_a_batch_run_makes(bench: Any, tmp_path: Path, compress: Any, tiny_json: str) -> None:
    parquet(tmp_path / "in" / "a.parquet", [f"hello {i}" for i in range(40)] + [None], row_group_size=10)
    parquet(tmp_path / "in" / "sub" / "b.parquet", ["other"])
    b = bench()
    b.work()
    b.queue.close()
    batch = tmp_path / "batch"
    compress(tmp_path / "in", output=batch, split_bytes=200, tokenizer_json=tiny_json)
    watched, undisturbed = (
        {n: h for n, h in bytes_below(o).items() if "manifest/" not in n} for o in (b.output, batch)
    )
    assert watched == undisturbed
    assert len([n for n in watched if n.startswith("a.part")]) > 1
    entries = {e.name: e for e in Manifest(str(batch)).entries()}
    for e in Manifest(str(b.output)).entries():
        same = entries[e.name]
        assert (e.source, e.identity, e.counts) == (same.source, same.identity, same.counts)


def test_a_shard_that_changes_is_redone_after_what_is_under_way(bench: Any, tmp_path: Path) -> None:
    b = bench()
    path = parquet(tmp_path / "in" / "a.parquet", [f"hello {i}" for i in range(40)], row_group_size=10)
    before = b.tick(2)
    assert len(before) > 1
    parquet(path, ["now", "shorter"])
    assert b.tick(3) == before, "a worker that is slow must not publish the old state over the new one"
    b.work()
    assert b.data() == ["a.parquet"], "what was made of it before is gone"
    assert b.texts() == 2


def test_a_bad_shard_is_a_dead_letter_until_it_changes(bench: Any, tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.parquet"
    parquet(tmp_path / "in" / "b.parquet", ["good"])
    path.write_bytes(b"junk")
    b = bench()
    b.work()
    assert b.data() == ["_tokzip/dead_letters/a.parquet", "b.parquet"]
    assert b.tick(3) == [], "it is not tried again and again"
    parquet(path, ["good as well"])
    b.work()
    assert b.data() == ["a.parquet", "b.parquet"]


def test_a_restart_tries_a_bad_shard_again_and_nothing_else(bench: Any, tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "b.parquet", ["good"])
    (tmp_path / "in" / "a.parquet").write_bytes(b"junk")
    bench().work()
    assert bench().tick(2) == ["a.parquet"]


@pytest.mark.parametrize("what", ["retire", "keep"])
def test_a_shard_that_goes_takes_its_output_with_it_or_not(bench: Any, tmp_path: Path, what: str) -> None:
    b = bench(on_vanished_shard=what)
    for name in ("a", "b"):
        parquet(tmp_path / "in" / f"{name}.parquet", ["text"])
    b.work()
    os.unlink(tmp_path / "in" / "a.parquet")
    b.tick(2)
    assert b.data() == (["b.parquet"] if what == "retire" else ["a.parquet", "b.parquet"])
    os.rename(tmp_path / "in", tmp_path / "elsewhere")
    b.tick(2)
    assert "b.parquet" in b.data(), "an input that is not there at all says nothing of its shards"
    os.rename(tmp_path / "elsewhere", tmp_path / "in")
    parquet(tmp_path / "in" / "a.parquet", ["it", "is", "back"])
    b.work()
    assert b.texts() == 4
    os.unlink(tmp_path / "in" / "a.parquet")
    b.tick(2)
    assert b.texts() == (1 if what == "retire" else 4)


@pytest.mark.parametrize("restart", [False, True])
def test_a_namesake_is_a_dead_letter_and_leaves_the_other_alone(bench: Any, tmp_path: Path, restart: bool) -> None:
    b = bench()
    parquet(tmp_path / "in" / "a.jsonl.parquet", ["first come"])
    b.work()
    before = bytes_below(tmp_path / "out")["a.jsonl.parquet"]
    b = bench() if restart else b
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "same name"}\n{"text": "of two rows"}\n')
    b.work()
    assert bytes_below(tmp_path / "out")["a.jsonl.parquet"] == before
    (name,) = (n for n in b.data() if "dead_letters" in n)
    (letter,) = pq.read_table(tmp_path / "out" / name).to_pylist()
    assert letter["shard"] == str(tmp_path / "in" / "a.jsonl")
    assert "would be written to a.jsonl.parquet, which is made from " in letter["reason"]
    os.rename(tmp_path / "in" / "a.jsonl", tmp_path / "in" / "b.jsonl")
    b.work()
    assert b.data() == ["a.jsonl.parquet", "b.jsonl.parquet"]


def test_a_backlog_goes_through_the_queue_piece_by_piece(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "AHEAD", 3)
    b = bench()
    for i in range(8):
        parquet(tmp_path / "in" / f"{i}.parquet", ["text"])
    assert b.tick(2) == ["0.parquet", "1.parquet", "2.parquet"]
    assert len(watch_queue.poll(b.queue.url).outputs) == 3
    b.work()
    assert b.texts() == 8


def test_a_closed_queue_ends_the_pipeline_and_what_was_not_begun_is_left(bench: Any, tmp_path: Path) -> None:
    b = bench()
    for i in range(3):
        parquet(tmp_path / "in" / f"{i}.parquet", ["text"])
    b.tick(2)
    polled = watch_queue.poll(b.queue.url)
    assert not polled.is_complete
    run = b.worker()
    list(run.process((b.queue.url, polled.outputs[0].value)))
    b.queue.close()
    assert watch_queue.poll(b.queue.url).is_complete
    assert not (tmp_path / "out" / "_tokzip" / "queue").exists()
    for found in polled.outputs:  # they had reached the workers before
        assert list(run.process((b.queue.url, found.value))) == []
    assert b.data() == ["0.parquet"]
    assert bench().tick(2) == ["1.parquet", "2.parquet"]


def test_a_run_ends_the_pipeline_that_a_dead_one_left_on_a_cluster(
    bench: Any, tmp_path: Path, compress_all: Command
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["text"])
    other = watch_queue.Queue(str(tmp_path / "out"))
    other.open()
    assert compress_all()[0] == 0
    assert watch_queue.poll(other.url).is_complete


def test_it_stops_at_too_many_dead_letters(bench: Any, tmp_path: Path) -> None:
    b = bench(max_dead_letters=options.Limit(1))
    parquet(tmp_path / "in" / "a.parquet", pa.array([None, "text"]))
    b.work()
    assert not b.invocation.stop.asked
    parquet(tmp_path / "in" / "b.parquet", pa.array([None, "text"]))
    b.work()
    assert b.invocation.stop.asked


def test_it_stops_when_another_run_has_taken_the_output(bench: Any, tmp_path: Path) -> None:
    b = bench()
    b.invocation.lock = lock.Lock(str(tmp_path / "out"))
    b.tick()
    b.invocation.lock.lost = True
    with pytest.raises(lock.OutputLostError):
        b.tick()


def test_a_split_is_not_lost_where_the_queue_cannot_be_written_to(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench()
    parquet(tmp_path / "in" / "a.parquet", ["text"])
    b.tick()
    with monkeypatch.context() as m:
        m.setattr(storage, "publish_json", lambda *a: (_ for _ in ()).throw(watch.StorageError("it is down")))
        with pytest.raises(watch.StorageError):
            b.tick()
    b.work()
    assert b.data() == ["a.parquet"]


@pytest.mark.parametrize(
    "runner",
    [
        [],
        ["--workers=2"],
        ["--runner=DirectRunner"],
        ["--runner=BundleBasedDirectRunner"],
        ["--runner=SparkRunner"],
        ["--runner=DataflowRunner"],
        ["--runner=PortableRunner"],
    ],
)
def test_runners_that_lose_shards_are_refused(compress_all: Command, tmp_path: Path, runner: list[str]) -> None:
    code, printed = compress_all("--watch", *runner)
    assert code == 2
    assert "use --runner=PrismRunner" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("interval", ["0", "-1", "x", "nan", "1e3"])
def test_an_interval_that_is_none(compress_all: Command, interval: str) -> None:
    code, printed = compress_all("--watch", "--runner=PrismRunner", f"--watch-interval={interval}")
    assert code == 2
    assert "no number of seconds" in printed


def test_a_bad_shard_that_no_worker_has_tried_again_is_not_published_again(bench: Any, tmp_path: Path) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    (tmp_path / "in" / "b.parquet").write_text("no Parquet")
    bench().work()
    again = bench()  # as after a restart
    assert again.tick(2) == ["b.parquet"], "the bad one is to be tried again"
    again.queue.close()
    again.watcher._collect(again.watcher.queued)
    assert not again.watcher.made
    assert list(again.watcher.queued.values()), "it is left for the next run"


def test_the_limit_does_not_count_what_is_about_to_be_replaced(bench: Any, tmp_path: Path) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", pa.array(["hello", None]))
    b = bench(max_dead_letters=options.Limit(1))
    b.work()
    parquet(path, ["hello"])
    parquet(tmp_path / "in" / "b.parquet", pa.array([None], pa.string()))
    assert b.tick(2) == ["a.parquet", "b.parquet"]
    (url,) = (u for u, s in b.watcher.queued.items() if s.name == "b.parquet")
    list(b.worker().process((b.queue.url, url)))
    assert b.tick() == ["a.parquet"]
    assert not b.watcher.stop.asked


def test_a_watch_that_ends_before_it_began_keeps_the_summary(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "in" / "a.parquet", pa.array(["hello", None]))
    argv = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--tokenizer", str(tiny_model)]
    assert compress.main([*argv, "--no-progress"]) == 3
    summary = tmp_path / "out" / "_tokzip" / "summary.json"
    before = json.loads(summary.read_text())
    monkeypatch.setattr(watch.Stop, "on_signals", lambda self: self)
    monkeypatch.setattr(watch.Watcher, "first", lambda self, plan: None)  # as when it is told to stop
    assert compress.main([*argv, "--watch", "--runner=PrismRunner"]) == 3
    after = json.loads(summary.read_text())
    assert {**after, "finished": ""} == {**before, "finished": ""}


def test_embed_takes_what_is_committed_only_from_a_folder_in_a_data_set_too(
    bench: Any, tmp_path: Path, compress: Any
) -> None:
    for name in ("a", "sub/b", "sub/c", "sub/deep/d"):
        parquet(tmp_path / "text" / f"{name}.parquet", ["text"])
    made = compress(tmp_path / "text", output=tmp_path / "in")
    home = Manifest(made.output)
    storage.publish_json({"stage": "compress"}, made.output, home.place("dataset.json"))
    for e in made.entries:
        if e.name in ("sub/c.parquet", "sub/deep/d.parquet"):
            os.unlink(home.place("manifest", f"{e.name}.json"))  # as a worker that is killed in between leaves them
    parquet(tmp_path / "elsewhere" / "e.parquet", ["of no data set"])

    def takes(folder: str) -> list[str]:
        return [name for name, f in splits.find_shards([str(tmp_path / folder)]) if embed._is_committed((name, f))]

    assert takes("in/sub") == ["b.parquet"]
    assert takes("in/sub/deep") == []
    assert takes("in") == ["a.parquet", "sub/b.parquet"]
    assert takes("elsewhere") == ["e.parquet"]
    shutil.copytree(tmp_path / "in", tmp_path / "both" / "first")
    assert takes("both") == ["first/a.parquet", "first/sub/b.parquet"], "the data set is below the input"
