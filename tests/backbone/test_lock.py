"""One run at a time on an output: claims, dead claims, waiting, and what dead runs left of temporary files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shards import bytes_below, parquet

from pipelines import lock, processes, storage
from pipelines.lock import OutputInUseError, OutputLostError, held

Command = Callable[..., tuple[int, str]]


@pytest.fixture(params=["disk", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "out")
    # A store shows a file whole or not at all; fsspec's memory shows how it is filled, also to the thread that reads.
    monkeypatch.setattr(
        MemoryFileSystem, "put_file", lambda fs, here, there: fs.pipe_file(there, Path(here).read_bytes())
    )
    fsspec.filesystem("memory").store.clear()
    return storage.absolute("memory://bucket/out")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_POLL", 0.05)
    monkeypatch.setattr(lock, "BEAT", 0.05)


def claim(output: str, **changes: Any) -> str:
    """The claim of another run."""
    url = storage.join(output, "_tokzip", "locks", f"{uuid.uuid4().hex}.json")
    now = {
        "host": "elsewhere",
        "machine": "0" * 12,
        "pid": 7,
        "process_started": "5",
        "started": 1_700_000_000.0,
        "beat": time.time(),
    }
    storage.publish_json({**now, **changes}, output, url)
    return url


def claims(output: str) -> list[str]:
    return storage.list_files(storage.join(output, "_tokzip", "locks"), ".json")


def test_the_second_is_refused_and_told_of_the_first(output: str) -> None:
    with held(output):
        with (
            pytest.raises(OutputInUseError, match=rf"pid {os.getpid()}, started 20.* UTC\) is at work there"),
            held(output),
        ):
            pytest.fail("two hold it")
        assert len(claims(output)) == 1, "and the first still holds it"
    assert claims(output) == []
    with held(output):
        pass


def test_of_many_at_once_never_two_hold_it(tmp_path: Path) -> None:
    output = str(tmp_path / "out")  # fsspec's memory gives all threads one file object, and one place in it
    inside, most, refused, took = [0], [0], [0], [0]
    guard = threading.Lock()

    def run() -> None:
        for _ in range(4):
            try:
                with held(output):
                    with guard:
                        inside[0] += 1
                        took[0] += 1
                        most[0] = max(most[0], inside[0])
                    time.sleep(0.01)
                    with guard:
                        inside[0] -= 1
            except OutputInUseError:
                with guard:
                    refused[0] += 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert most[0] == 1
    assert took[0] >= 1
    assert took[0] + refused[0] == 16
    assert claims(output) == []


def test_who_waits_gets_it_when_the_first_ends(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []
    started = threading.Event()

    def second() -> None:
        started.set()
        with held(output, wait=True):
            order.append("second")

    with held(output):
        thread = threading.Thread(target=second)
        thread.start()
        started.wait()
        deadline = time.monotonic() + 60
        while "waiting: another run" not in capsys.readouterr().err and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_claim_of_a_dead_process_of_this_machine_is_no_obstacle(output: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = {"machine": processes.machine(), "pid": process.pid, "process_started": processes.started(process.pid)}
    url = claim(output, **here)
    with (
        pytest.raises(OutputInUseError, match=f"host elsewhere, pid {process.pid}, started 2023-11-14 22:13:20"),
        held(output),
    ):
        pytest.fail("it lives")
    process.kill()
    deadline = time.monotonic() + 60
    while processes.is_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    with held(output):  # not even waited for: a zombie is dead enough
        assert url not in claims(output)
    process.wait()


def test_another_process_of_the_same_number_is_another(output: str) -> None:
    claim(output, machine=processes.machine(), pid=os.getpid(), process_started="1")
    with held(output):
        pass


@pytest.mark.parametrize("beat", ["", "fresh", "ahead of our clock"])
def test_a_run_of_another_machine_is_dead_when_its_claim_is_old(output: str, beat: str) -> None:
    age = {"": 1000, "fresh": 0, "ahead of our clock": -5000}[beat]
    url = claim(output, beat=time.time() - age)
    with contextlib.ExitStack() as stack:
        if beat:
            with pytest.raises(OutputInUseError):
                stack.enter_context(held(output))
        else:
            stack.enter_context(held(output))
        assert (url in claims(output)) == bool(beat)


def test_a_machine_whose_clock_is_behind_is_not_robbed(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claim looks old, but is renewed while it is watched."""
    url = claim(output, beat=1.0)
    there = storage.read_json(url)

    def meanwhile(_: float) -> None:
        storage.publish_json({**there, "beat": there["beat"] + 15}, output, url)

    assert not lock._is_dead(url, {**there, "pid": 7}, sleep=meanwhile)
    assert lock._is_dead(url, {**storage.read_json(url), "pid": 7}, sleep=lambda _: None)
    storage.remove(url)
    assert not lock._is_dead(url, {**there, "pid": 7}, sleep=lambda _: None), "taken back meanwhile: nothing to remove"


def test_a_claim_is_renewed_and_a_lost_one_is_noticed(output: str) -> None:
    with held(output) as mine:
        first = storage.read_json(mine.url)["beat"]
        deadline = time.monotonic() + 60
        while storage.read_json(mine.url)["beat"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert storage.read_json(mine.url)["beat"] > first
        mine.check()
        storage.remove(mine.url)
        while not mine.lost and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):  # a beat may have been on its way
                storage.remove(mine.url)
            time.sleep(0.01)
        with pytest.raises(OutputLostError, match="another run took over"):
            mine.check()


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"pid": "x"}'])
def test_a_foreign_file_among_the_claims_is_named(output: str, data: bytes) -> None:
    url = storage.join(output, "_tokzip", "locks", "x.json")
    storage.publish_bytes(data, output, url)
    with pytest.raises(storage.InputError, match=r"locks/x\.json"), held(output):
        pass


# ---- through the command


def test_a_command_is_refused_while_another_is_at_work(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    with held(str(tmp_path / "out")):
        before = bytes_below(tmp_path / "out").keys()
        code, printed = compress_all()
        assert code == 1
        assert (
            f"out: another run (host {json.loads(Path(claims(str(tmp_path / 'out'))[0]).read_text())['host']}, pid"
            in printed
        )
        assert bytes_below(tmp_path / "out").keys() == before
    assert compress_all("--wait-for-lock")[0] == 0
    assert not {"tmp", "locks"} & {p.name for p in (tmp_path / "out" / "_tokzip").iterdir()}


def test_temporary_files_of_dead_processes_are_removed_and_no_others(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    tmp = tmp_path / "out" / "_tokzip" / "tmp"
    tmp.mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = processes.machine()
    names = {
        "dead": f"tokzip-scratch-{here}-{dead.pid}-0",
        "alive": f"tokzip-scratch-{here}-{os.getpid()}-0",
        "elsewhere": f"tokzip-scratch-000000000000-{dead.pid}-0",
        "elsewhere, long ago": f"tokzip-scratch-000000000000-{dead.pid}-1",
        "whatever, long ago": "x",
    }
    for what, name in names.items():
        (tmp / name).write_bytes(b"half")
        if "ago" in what:
            os.utime(tmp / name, (1, 1))
    assert compress_all()[0] == 0
    assert sorted(p.name for p in tmp.iterdir()) == sorted([names["alive"], names["elsewhere"]])


def test_scratch_files_of_dead_processes_go_from_the_folder_for_temporary_files_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"tokzip-scratch-{processes.machine()}-{dead.pid}-0", "another program's", "tokzip-scratch-x-y-z"):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1, 1))
    storage.clear_scratch("memory://bucket/out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["another program's", "tokzip-scratch-x-y-z"]


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, compress_all: Command, command: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    (tmp_path / "out").write_text("in the way")
    code, printed = compress_all()
    assert code == 1
    assert f"error: --output {tmp_path}/out: cannot be written: " in printed
