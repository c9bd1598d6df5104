"""Both stages on every runner that can be had here: the same bytes each time, also where workers were killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from far import Far
from jobs import JOB_SERVER, Elsewhere, Job, external
from s3_store import Store

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


def fails_in_either_stage(run: Callable[[str], int], job: Job, undisturbed: Job, capfd: Any) -> None:
    """`run` starts the command in which a worker is killed in that stage, and returns its exit code."""
    for stage in ("tokens", "embeddings"):
        assert run(stage) == 1
        assert "tokzip run: error: " in capfd.readouterr().err.splitlines()[-1]
        assert 1 <= len(job.committed(stage)) < len(undisturbed.committed(stage))


def test_a_worker_process_killed(
    here: Job,
    undisturbed: Job,
    dying: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(stage: str) -> int:
        environment = dying(Path(here.output, stage, "_tokzip", "manifest", "a.part"))
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            code = here.run("--workers=2")
        assert Path(environment["TOKZIP_TEST_DIED"]).exists()
        return code

    fails_in_either_stage(run, here, undisturbed, capfd)
    assert here.run("--workers=2") == 3
    assert here.made() == undisturbed.made()


def test_workers_elsewhere_killed(
    on_s3: Job,
    store: Store,
    undisturbed: Job,
    prism: None,
    elsewhere: Elsewhere,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Prism with a worker pool: as with Flink, Spark and Dataflow, workers share nothing with us but the store.

    In stage 1 one is killed as it uploads what it has made, in stage 2 as it commits it.
    """
    places = {"tokens": "/tokens/a.part-", "embeddings": "/embeddings/_tokzip/manifest/"}

    def run(stage: str) -> int:
        killed: list[int] = []

        def takes(key: str) -> bool:
            if killed or places[stage] not in key or not on_s3.committed(stage):
                return True
            killed.append(next(pid_of(name) for name in os.listdir(pool.tmp) if "scratch" in name))
            os.kill(killed[0], signal.SIGKILL)
            return False

        with elsewhere.pool(stage) as pool, monkeypatch.context() as patch:
            patch.setattr(store, "takes", takes)
            code = on_s3.run("--runner=PrismRunner", *external(pool))
        assert killed
        return code

    fails_in_either_stage(run, on_s3, undisturbed, capfd)
    with elsewhere.pool() as pool:  # a pool wants a new start after an aborted job
        assert on_s3.run("--runner=PrismRunner", *external(pool)) == 3
    assert on_s3.made() == undisturbed.made()


def pid_of(scratch: str) -> int:
    """Of the process that writes a scratch file, by its name."""
    return int(scratch.split("-")[-2])
