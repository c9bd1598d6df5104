"""`--watch` as a user runs it, on Prism: shards that come, signals, a kill, and the bytes of undisturbed batch runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shards import bytes_below, parquet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prism")]
Command = Callable[..., tuple[int, str]]


class Watch:
    """The command in a process group of its own."""

    def __init__(self, log: Path, argv: list[str], env: dict[str, str]) -> None:
        self.log = log
        code = "import sys; from pipelines.cli import main; sys.exit(main())"
        with log.open("w") as f:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *argv, "--watch", "--watch-interval=0.6", "--runner=PrismRunner"],
                cwd=Path(__file__).parents[2],
                env=os.environ | {"HF_HUB_OFFLINE": "1"} | env,
                stdout=f,
                stderr=f,
                start_new_session=True,
            )

    def until(self, true: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 600
        while not true():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < give_up, self.log.read_text()
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        """Its exit code, after the signal was sent to its whole group, as a terminal does."""
        os.killpg(self.process.pid, number)
        return self.process.wait(600)


Start = Callable[..., Watch]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Watch] = []

    def run(*argv: object, env: dict[str, str] | None = None) -> Watch:
        started.append(Watch(tmp_path / f"log{len(started)}", list(map(str, argv)), env or {}))
        return started[-1]

    yield run
    for w in started:
        if w.process.poll() is None:
            os.killpg(w.process.pid, signal.SIGKILL)
            w.process.wait()


def data(output: Path) -> dict[str, str]:
    left_out = ("manifest/", "summary.json", "cache/")
    return {n: h for n, h in bytes_below(output).items() if not any(x in n for x in left_out)}


def test_stopped_killed_and_started_again_it_ends_as_batch_runs_do(
    tmp_path: Path, start: Start, command: Command, tokenizer_dir: Path, dying: Callable[..., dict[str, str]]
) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    named = ["--tokenizer", tokenizer_dir, "--split-bytes", "300", "--no-progress"]
    argv = ["compress", "--input", inputs, "--output", output, *named]

    def committed(prefix: str) -> int:
        return len(list((output / "_tokzip" / "manifest").glob(f"{prefix}*")))

    w = start(*argv)
    w.until(lambda: "waiting: no file matches" in w.log.read_text())
    a = parquet(inputs / "a.parquet", [f"hello {i}" for i in range(40)], row_group_size=10)
    batch = ["compress", "--input", inputs, "--output", tmp_path / "batch", *named]
    assert command(*batch)[0] == 0
    w.until(lambda: committed("a.part") == len(list((tmp_path / "batch").glob("a.part*"))) > 1)
    junk = inputs / "junk.parquet"
    junk.write_bytes(b"half a shard")
    w.until(lambda: committed("junk") == 1)
    code, printed = command(*argv)
    assert code == 1
    assert "another run" in printed
    assert w.end(signal.SIGTERM) == 3, w.log.read_text()
    summary = json.loads((output / "_tokzip" / "summary.json").read_text())
    assert (summary["rows_out"], summary["bad_shards"], summary["shards"]) == (40, 1, 2)

    parquet(inputs / "b.parquet", [f"other words {i}" for i in range(2000)], row_group_size=10)
    w = start(*argv, env=dying(output / "_tokzip" / "manifest" / "b.part", 4))
    assert w.process.wait(600) == -signal.SIGKILL
    killed_with = committed("b.part")
    parquet(a, ["what was in it before is gone"])
    w = start(*argv)
    parquet(junk, ["the other half"])
    assert command(*batch)[0] == 0
    total = len(list((tmp_path / "batch").glob("b.part*")))
    assert 4 <= killed_with < total, "it was killed in the middle"
    w.until(lambda: committed("b.part") == total and committed("a.parquet") == 1 and not committed("a.part-"))
    w.until(lambda: (output / "junk.parquet").exists())
    assert w.end(signal.SIGINT) == 0, w.log.read_text()
    assert data(output) == data(tmp_path / "batch")


def test_both_stages_at_once(tmp_path: Path, start: Start, command: Command, tiny_model: Path) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    named = ["--tokenizer", tiny_model, "--model", tiny_model, "--cache", "none", "--no-progress"]
    w = start("run", "--input", inputs, "--output", output, *named)
    for name in ("a", "b"):
        parquet(inputs / f"{name}.parquet", [f"hello {name} {i}" for i in range(40)])
        assert command("run", "--input", inputs, "--output", tmp_path / "batch", *named)[0] == 0
        w.until(lambda done=output / "embeddings" / "_tokzip" / "manifest" / f"{name}.parquet.json": done.exists())
    assert w.end(signal.SIGINT) == 0, w.log.read_text()
    summary = json.loads((output / "summary.json").read_text())
    assert [summary[stage]["rows_out"] for stage in ("compress", "embed")] == [80, 80]
    assert data(output) == data(tmp_path / "batch")
