"""Both stages killed by SIGKILL at random moments, again and again: the outputs are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from shards import bytes_below, parquet

from pipelines.manifest import Manifest

KILLS = int(os.environ.get("TOKZIP_KILLS", "20"))
_KILLS_AN_OUTPUT = 5  # before it is let finish, and compared

pytestmark = pytest.mark.slow


class Server:
    """The fork server, and the log of its last command."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(log)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, argv: list[str]) -> int:
        """The process id of the command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(argv) + "\n")
        self.process.stdin.flush()
        return self._line()

    def wait(self) -> int:
        """Its exit code; minus the signal, if one ended it."""
        return self._line()

    def _line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("log") / "log")
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait()


def data_of(output: Path) -> dict[str, str]:
    """All but timings, and the cache, of which a killed run may have lost or kept more."""
    left_out = ("manifest/", "summary.json", "cache/")
    return {n: h for n, h in bytes_below(output).items() if not any(x in n for x in left_out)}


def reconciled(output: Path) -> dict[str, int]:
    """The rows of both stages by the manifest, after every entry was compared with its files."""
    rows = {}
    for stage in ("tokens", "embeddings"):
        files = bytes_below(output / stage)
        entries = Manifest(str(output / stage)).entries()
        for kind in ("output", "dead_letters"):
            made = {e.name: getattr(e, kind) for e in entries if getattr(e, kind)}
            for described in made.values():
                assert files[described["path"]] == described["sha256"]
        for e in entries:
            assert e.counts["rows_in"] == e.counts["rows_out"] + e.counts["rows_dead"]
            assert e.output is not None
            assert pq.read_metadata(output / stage / e.output["path"]).num_rows == e.counts["rows_out"]
        data = {n for n in files if n.endswith(".parquet") and "_tokzip" not in n}
        assert data == {e.output["path"] for e in entries if e.output}, "no file that no entry knows"
        rows[f"{stage} in"] = int(sum(e.counts["rows_in"] for e in entries))
        rows[f"{stage} dead"] = int(sum(e.counts["rows_dead"] for e in entries))
    return rows


def test_killed_anywhere_it_ends_as_an_undisturbed_run(server: Server, tmp_path: Path, tiny_model: Path) -> None:
    for i in range(4):
        texts = [f"hello {i} {j} {'again ' * (j % 5)}" for j in range(200)]
        parquet(tmp_path / "in" / f"{i}.parquet", [*texts, None, "ÿ"], row_group_size=50)

    def argv(output: Path) -> list[str]:
        cache = f"memory:1MB,disk:{output / 'cache'}:10MB"
        named = ["--input", tmp_path / "in", "--output", output, "--tokenizer", tiny_model, "--model", tiny_model]
        return list(map(str, ["run", *named, "--cache", cache, "--split-bytes", "600", "--no-progress"]))

    undisturbed = tmp_path / "undisturbed"
    took = []
    for _ in range(2):  # the second as the killed ones are, with warm files
        shutil.rmtree(undisturbed, ignore_errors=True)
        began = time.monotonic()
        server.start(argv(undisturbed))
        assert server.wait() == 3, server.log.read_text()
        took.append(time.monotonic() - began)
    expected, rows = data_of(undisturbed), reconciled(undisturbed)
    assert rows == {"tokens in": 808, "tokens dead": 4, "embeddings in": 804, "embeddings dead": 0}
    assert sum(n.startswith("embeddings/") for n in expected) > 16

    chance = random.Random(int(os.environ.get("TOKZIP_KILLS_SEED", "6")))
    killed, moments = 0, []
    while killed < KILLS:
        output = tmp_path / "out"
        for _ in range(_KILLS_AN_OUTPUT):
            pid = server.start(argv(output))
            moment = chance.uniform(0, min(took))
            time.sleep(moment)
            os.kill(pid, signal.SIGKILL)
            code = server.wait()
            assert code in (-signal.SIGKILL, 3), server.log.read_text()
            if code == 3:
                break  # it was done before
            killed += 1
            moments.append(moment / min(took))
        server.start(argv(output))
        assert server.wait() == 3, f"{moments}\n{server.log.read_text()}"
        assert data_of(output) == expected, moments
        assert reconciled(output) == rows
        shutil.rmtree(output)
    print(f"{killed} kills, at these parts of an undisturbed run's {min(took):.1f} s: {[round(m, 2) for m in moments]}")
