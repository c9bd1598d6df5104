"""How a watch ends: what is in flight is finished whatever fails, signals are heard from the start, and one is one."""

from __future__ import annotations

import argparse
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shards import parquet

from pipelines import compress, embed, job, lock, options, splits, storage, watch, watch_queue
from pipelines.compress_stage import CompressStage
from pipelines.manifest import Manifest
from pipelines.transient import StorageError


class Bench:
    """A watch on tmp_path/in whose runner is a thread that does the queue's splits as slowly as the test wants."""

    def __init__(self, folder: Path) -> None:
        named = {"input": [str(folder / "in")], "watch_interval": 1e-3, "on_vanished_shard": "retire"}
        args = argparse.Namespace(**named, max_dead_letters=None)
        self.output = str(folder / "out")
        self.watcher = watch.Watcher(
            options.Invocation(args, [], stop=watch.Stop()), self.output, lambda: job.find(args.input, "nowhere")
        )
        self.stage = CompressStage(self.output, "text", (), "auto", "run")
        self.watcher.plan = lambda shard: splits.plan([shard], self.stage.columns, 200, True)
        self.watcher.execute = self.runner  # type: ignore[method-assign]
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), False

    def runner(self, what: str, build: Any, streaming: bool = False) -> None:
        (opened,) = (u for u in storage.list_files(f"{self.output}/_tokzip/queue", ".open"))
        queue = opened.removesuffix(".open")
        work = watch_queue.RunQueued(self.stage, self.output, skip_bad=True)
        work.setup()
        read = watch_queue._read
        while not (polled := watch_queue.poll(queue)).is_complete:
            for found in polled.outputs:
                if split := read(found.value):
                    self.begun.set()
                    assert self.go_on.wait(30)
                    list(super(watch_queue.RunQueued, work).process(split))
                    storage.remove(found.value)
        self.ended = True


@pytest.fixture
def bench(tmp_path: Path, tiny_json: str, codebook: Any) -> Bench:
    home = Manifest(str(tmp_path / "out"))
    storage.publish_bytes(tiny_json.encode(), home.output, home.place("tokenizer.json"))
    storage.publish_bytes(codebook.to_bytes(), home.output, home.place("codebook.tzc"))
    parquet(tmp_path / "in" / "a.parquet", ["text"])
    return Bench(tmp_path)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("error", [StorageError, PermissionError])
def test_what_is_in_flight_is_finished_though_the_queue_cannot_be_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: type[Exception], where: str
) -> None:
    close, failures = watch_queue.Queue.close, iter([error("it is down"), error("still")])

    def closed_badly(queue: watch_queue.Queue) -> None:
        if where == "after":
            close(queue)
        if failure := next(failures, None):
            bench.go_on.set()
            raise failure
        close(queue)

    monkeypatch.setattr(watch_queue.Queue, "close", closed_badly)

    def stop() -> None:
        assert bench.begun.wait(30)
        bench.watcher.stop.asked = True

    threading.Thread(target=stop).start()
    done = bench.watcher.run(bench.stage)
    assert bench.ended
    assert [e.name for e in done.made] == ["a.parquet"]


def test_what_is_in_flight_is_finished_though_the_launcher_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    tick = watch.Watcher.tick

    def fails(self: watch.Watcher, queue: watch_queue.Queue) -> None:
        if bench.begun.is_set():
            bench.go_on.set()
            raise PermissionError("of the launcher")
        tick(self, queue)

    monkeypatch.setattr(watch.Watcher, "tick", fails)
    with pytest.raises(PermissionError, match="of the launcher"):
        bench.watcher.run(bench.stage)
    assert bench.ended
    assert Manifest(bench.output).names() == ["a.parquet"]


def test_whose_output_another_run_has_taken_leaves_at_once(bench: Bench) -> None:
    held = bench.watcher.invocation.lock = lock.Lock(bench.output)

    def taken() -> None:
        assert bench.begun.wait(30)
        watch_queue.clear(bench.output)
        held.lost = True

    threading.Thread(target=taken).start()
    with pytest.raises(lock.OutputLostError):
        bench.watcher.run(bench.stage)
    assert not bench.ended
    bench.go_on.set()


def test_a_poll_that_the_store_does_not_answer_is_no_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = watch_queue.Queue(bench.output)
    queue.open()
    with monkeypatch.context() as m:
        m.setattr(storage, "list_files", lambda *a: (_ for _ in ()).throw(StorageError("it is down")))
        polled = watch_queue.poll(queue.url)
    assert (polled.is_complete, list(polled.outputs)) == (False, [])
    queue.close()
    assert watch_queue.poll(queue.url).is_complete


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_to_a_process_and_to_its_group_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = watch.Stop().on_signals()
    assert not stop.asked
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked
    raised: list[int] = []
    stop.heard = time.monotonic() - 2 * watch.SAME_SIGNAL
    with monkeypatch.context() as m:
        m.setattr(signal, "raise_signal", raised.append)
        stop._hear(signal.SIGINT, None)
    assert raised == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("stage", ["compress", "embed", "run"])
def test_a_signal_while_it_starts_ends_it_before_it_begins(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, stage: str, command: Any
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    for module, name in ((compress, "load_tokenizer"), (embed, "check_model")):
        real = getattr(module, name)

        def signalled(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, signalled)
    argv = {"compress": ["--tokenizer"], "embed": ["--model"], "run": ["--tokenizer", tiny_model, "--model"]}[stage]
    named = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--watch", "--runner=PrismRunner"]
    code, printed = command(stage, *named, *argv, tiny_model)
    assert code == 0, printed
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_it_begins_nothing_once_it_is_told_to_stop(bench: Bench) -> None:
    def plan(shard: watch.Shard) -> list[splits.Split]:
        bench.watcher.stop.asked = True
        return splits.plan([shard], bench.stage.columns, 200, True)

    assert bench.watcher.first(plan) is None
