"""Both stages from `s3://` to `s3://` over HTTP, killed in either: the bytes of a local run, and each written once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from commands import command, data_files
from s3_store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def manifest(store: Store, stage: str) -> dict[str, list[str]]:
    return store.versions(f"out/{stage}/_tokzip/manifest")


def killed(argv: list[str], store: Store, stage: str) -> set[str]:
    """Run the command, and kill it and its children as it commits the fourth split of the stage: those committed."""
    started: Future[int] = Future()

    def takes(key: str) -> bool:
        if f"out/{stage}/_tokzip/manifest/" not in key or len(manifest(store, stage)) < 3:
            return True
        os.killpg(started.result(), signal.SIGKILL)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "takes", takes)
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())", *argv],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | store.environment,
            start_new_session=True,
        )
        started.set_result(process.pid)
        assert process.wait() == -signal.SIGKILL, "it was killed before it ended"
    return {name.removesuffix(".json") for name in manifest(store, stage)}


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
        committed[stage] = killed(argv, store, stage)
        assert len(committed[stage]) == 3

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
