"""Stage 1 through the installed command, on every local runner and through a kill: the same bytes each time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from shards import bytes_below, parquet

import tokzip_core as tz

pytestmark = pytest.mark.slow
Tokzip = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Parquet shards of many row groups, one with bad rows; one of JSON Lines; one empty."""
    folder = tmp_path_factory.mktemp("runners") / "in"
    texts = [f"Row {i} of the corpus: the quick brown fox, {'again ' * (i % 7)}." for i in range(4_000)]
    parquet(folder / "a.parquet", texts, row_group_size=100)
    parquet(folder / "sub" / "b.parquet", pa.array([*texts[:500], None, *texts[:9]]), row_group_size=100)
    parquet(folder / "none.parquet", pa.array([], pa.string()))
    (folder / "c.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(300)) + "oops\n")
    return folder


def arguments(corpus: Path, output: Path, model_dir: Path) -> list[Any]:
    named = ["--input", corpus, "--output", output, "--tokenizer", model_dir]
    return ["compress", *named, "--split-bytes", "10KB", "--train-bytes", "60KB", "--no-progress"]


def without_timings(output: Path) -> dict[str, str]:
    return {n: h for n, h in bytes_below(output).items() if "manifest/" not in n and not n.endswith("summary.json")}


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tokzip: Tokzip, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local runner makes of the corpus with one process."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert tokzip(*arguments(corpus, output, model_dir), check=False).returncode == 3, "done, with dead letters"
    return output


def test_the_local_runner(corpus: Path, undisturbed: Path, tokzip: Tokzip) -> None:
    assert len(list(undisturbed.glob("a.part-*"))) > 20
    assert tz.read_table(str(undisturbed)).num_rows == 4_000 + 509 + 300
    assert "every row is equal: 4,809 rows, and 2 dead" in tokzip("verify", undisturbed, "--input", corpus).stdout


def test_two_processes(corpus: Path, undisturbed: Path, tokzip: Tokzip, model_dir: Path, tmp_path: Path) -> None:
    argv = [*arguments(corpus, tmp_path / "out", model_dir)]
    beam = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    done = tokzip(*argv, *beam, check=False)
    assert done.returncode == 3, done.stderr
    assert without_timings(tmp_path / "out") == without_timings(undisturbed)


def prism() -> str:
    found = shutil.which("prism", path=f"{os.environ['PATH']}:{Path.home() / 'go' / 'bin'}")
    if not found and os.environ.get("TOKZIP_REQUIRE_PRISM"):
        pytest.fail("TOKZIP_REQUIRE_PRISM is set, and there is no prism on PATH (make prism)")
    if not found:
        pytest.skip("no prism on PATH (make prism builds it)")
    return found


def test_prism(corpus: Path, undisturbed: Path, tokzip: Tokzip, model_dir: Path, tmp_path: Path) -> None:
    env = {"PATH": f"{Path(prism()).parent}:{os.environ['PATH']}"}
    argv = [*arguments(corpus, tmp_path / "out", model_dir), "--runner=PrismRunner"]
    done = tokzip(*argv, check=False, env=env)
    assert done.returncode == 3, done.stderr
    assert without_timings(tmp_path / "out") == without_timings(undisturbed)


@pytest.mark.parametrize("how", ["", "--workers=2", "--runner=PrismRunner"])
def test_a_job_that_fails_says_why_in_one_line(tokzip: Tokzip, model_dir: Path, tmp_path: Path, how: str) -> None:
    env = {"PATH": f"{Path(prism()).parent}:{os.environ['PATH']}"} if "Prism" in how else {}
    data = bytearray(parquet(tmp_path / "in" / "a.parquet", ["some text"] * 9).read_bytes())
    data[data.index(b"some text")] ^= 1
    (tmp_path / "in" / "a.parquet").write_bytes(data)
    argv = arguments(tmp_path / "in", tmp_path / "out", model_dir)
    done = tokzip(*argv, *filter(None, [how]), check=False, env=env)
    assert done.returncode == 1
    # Beam's own threads may go on grumbling after it.
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("tokzip compress: error: ")]
    assert f"error: {tmp_path}/in/a.parquet: unreadable: " in line
    assert "CRC" in line
    assert "[while running" not in line
    if not how:  # of worker processes, and of Prism's workers, Beam prints tracebacks itself
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("commits", [1, 12])
def test_a_killed_run_started_again_ends_as_an_undisturbed_one(
    corpus: Path, undisturbed: Path, tokzip: Tokzip, model_dir: Path, tmp_path: Path, commits: int
) -> None:
    output = tmp_path / "out"
    argv = [*map(str, arguments(corpus, output, model_dir))]
    code = "import sys; from pipelines.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    manifest = output / "_tokzip" / "manifest"
    try:
        while process.poll() is None and len(list(manifest.rglob("*.json"))) < commits:
            time.sleep(0.002)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    committed = len(list(manifest.rglob("*.json")))
    total = len(list((undisturbed / "_tokzip" / "manifest").rglob("*.json")))
    assert process.returncode == -signal.SIGKILL
    assert commits <= committed < total, "it was killed in the middle"
    assert tokzip(*argv, check=False).returncode == 3
    left = {n: h for n, h in without_timings(output).items() if not n.startswith("_tokzip/tmp/")}
    assert left == without_timings(undisturbed)
    assert len(list(manifest.rglob("*.json"))) == total
