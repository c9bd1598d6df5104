"""Both stages from `s3://` to `s3://` over HTTP, killed in either: the bytes of a local run, and each written once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import command, data_files
from s3_store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def manifest(store: Store, stage: str) -> dict[str, list[str]]:
    return store.versions(f"out/{stage}/_tokzip/manifest")


def killed(argv: list[str], env: dict[str, str], when: Callable[[], bool]) -> None:
    """Start the command, and kill it and its children as soon as `when` is true."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", *argv],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while process.poll() is None and not when():
            time.sleep(0.02)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was killed before it ended"


def test_killed_in_either_stage_and_started_again(
    store: Store,
    corpus: Path,
    encoder_folder: Path,
    options: list[str],
    local_run: dict[str, bytes],
) -> None:
    model = ["--tokenizer", str(encoder_folder), "--model", str(encoder_folder)]
    input, output = store.put(corpus, "in"), store.url("out")
    argv = ["run", "--input", f"{input}/*.parquet", "--output", output, *model, *options]
    splits = len(local_run) // 2
    assert splits >= 9

    committed = {}
    for stage in ("tokens", "embeddings"):
        killed(argv, store.environment, lambda stage=stage: len(manifest(store, stage)) >= 3)
        committed[stage] = {name.removesuffix(".json") for name in manifest(store, stage)}
        assert 3 <= len(committed[stage]) < splits, f"killed in the middle of {stage}"

    command(*argv)
    assert data_files(store.objects("out")) == local_run
    for stage, before in committed.items():
        written = {n: v for n, v in store.versions(f"out/{stage}").items() if not n.startswith("_tokzip/")}
        assert all(len(set(versions)) == 1 for versions in written.values()), "another attempt, other bytes"
        assert all(len(written[name]) == 1 for name in before), "what was committed was done again"
        assert sum(map(len, written.values())) <= splits + 1, "more than what was in flight was done again"
        assert len(manifest(store, stage)) == splits

    before = {n: v for n, v in store.versions("out").items() if "/manifest/" in n or n in local_run}
    assert len(before) == 4 * splits
    command(*argv)
    after = store.versions("out")
    assert {n: after[n] for n in before} == before, "a run with nothing to do wrote something again"
