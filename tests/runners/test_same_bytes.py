"""Both stages on every runner that can be had here: the same bytes each time, also where workers were killed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from far import Far, children
from jobs import JOB_SERVER, Elsewhere, Job, external

pytestmark = pytest.mark.slow


def test_the_corpus_is_worth_it(undisturbed: Job) -> None:
    made = undisturbed.made()
    for stage in ("tokens", "embeddings"):
        assert sum(n.startswith(f"{stage}/a.part-") for n in made) == 18
        assert f"{stage}/none.parquet" in made
    dead = [row["reason"] for n, rows in made.items() if "/dead_letters/" in n for row in rows]
    assert sorted(reason.split(":")[0] for reason in dead) == ["not JSON", "null text"]


def test_two_processes(here: Job, undisturbed: Job) -> None:
    """As Beam's own options ask for them; `--workers` below."""
    assert here.run("--direct_running_mode=multi_processing", "--direct_num_workers=2") == 3
    assert here.made() == undisturbed.made()


def test_prism(here: Job, undisturbed: Job, prism: None) -> None:
    assert here.run("--runner=PrismRunner") == 3
    assert here.made() == undisturbed.made()


def test_a_job_server(here: Job, on_s3: Job, undisturbed: Job, elsewhere: Elsewhere, pool: Far) -> None:
    """Beam's portable one: with this process as its worker, and with a worker pool."""
    with elsewhere.start("server", JOB_SERVER, "--port={port}") as server:
        runner = ["--runner=PortableRunner", f"--job_endpoint={server.address}"]
        assert here.run(*runner, "--environment_type=LOOPBACK") == 3
        assert here.made() == undisturbed.made()
        assert on_s3.run(*runner, *external(pool)) == 3
        assert on_s3.made() == undisturbed.made()


class Killer(threading.Thread):
    """Kills a descendant of process `above` with SIGKILL within a split: while it has a scratch file in `scratch`.

    It is stopped first, and let go on where the file is no longer there. `killed` says that one was.
    """

    def __init__(self, above: int, scratch: Path, ready: Callable[[], bool] = lambda: True) -> None:
        super().__init__()
        self.above, self.scratch, self.ready = above, scratch, ready
        self.killed, self.over = False, threading.Event()

    def run(self) -> None:
        while not self.killed and not self.over.wait(0.002):
            for pid in children(self.above) if self.ready() else []:
                if not self.killed and self._within_a_split(pid):
                    os.kill(pid, signal.SIGSTOP)
                    self.killed = self._within_a_split(pid)
                    os.kill(pid, signal.SIGKILL if self.killed else signal.SIGCONT)

    def _within_a_split(self, pid: int) -> bool:
        return any(f"-{pid}-" in name for _, _, names in os.walk(self.scratch) for name in names)

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def fails_in_either_stage(run: Callable[[str], int], capfd: pytest.CaptureFixture[str]) -> None:
    """`run` starts the command with a `Killer` for a stage, and returns its exit code."""
    for stage in ("tokens", "embeddings"):
        assert run(stage) == 1
        assert "tokzip run: error: " in capfd.readouterr().err.splitlines()[-1]


def test_a_worker_process_killed(here: Job, undisturbed: Job, capfd: pytest.CaptureFixture[str]) -> None:
    def run(stage: str) -> int:
        folder = Path(here.output, stage)
        with Killer(os.getpid(), folder, lambda: any(folder.glob("_tokzip/manifest/**/*.json"))) as killer:
            code = here.run("--workers=2")
        assert killer.killed
        assert 1 <= len(here.committed(stage)) < len(undisturbed.committed(stage))
        return code

    fails_in_either_stage(run, capfd)
    assert here.run("--workers=2") == 3
    assert here.made() == undisturbed.made()


def test_workers_elsewhere_killed(
    on_s3: Job, undisturbed: Job, prism: None, elsewhere: Elsewhere, capfd: pytest.CaptureFixture[str]
) -> None:
    """Prism with a worker pool: as with Flink, Spark and Dataflow, workers share nothing with us but the store."""

    def run(stage: str) -> int:
        with elsewhere.pool(stage) as pool, Killer(pool.process.pid, pool.tmp) as killer:
            if stage == "embeddings":
                killer.ready = lambda: len(on_s3.committed("tokens")) == len(undisturbed.committed("tokens"))
            code = on_s3.run("--runner=PrismRunner", *external(pool))
        assert killer.killed
        assert len(on_s3.committed(stage)) < len(undisturbed.committed(stage))
        return code

    fails_in_either_stage(run, capfd)
    with elsewhere.pool() as pool:  # a pool wants a new start after an aborted job
        assert on_s3.run("--runner=PrismRunner", *external(pool)) == 3
    assert on_s3.made() == undisturbed.made()
