"""What a failed job says: one line for an error of ours on every runner; for other errors all that Beam says."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grpc import _channel

from pipelines.quiet import hold, is_news, quiet, release
from pipelines.storage import InputError

Tokzip = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["", "--workers=2", "--runner=PrismRunner"])
def test_one_line_says_why(tokzip: Tokzip, prism: None, tiny_model: Path, tmp_path: Path, runner: str) -> None:
    shard = tmp_path / "in" / "a.parquet"
    shard.parent.mkdir()
    pq.write_table(pa.table({"text": ["some text"] * 9}), shard, write_page_checksum=True, compression="none")
    data = bytearray(shard.read_bytes())
    data[data.index(b"some text")] ^= 1
    shard.write_bytes(data)
    named = ["--input", shard, "--output", tmp_path / "out", "--tokenizer", tiny_model]
    done = tokzip("compress", *named, *filter(None, [runner]), check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"tokzip compress: error: {shard}: unreadable: ")
    assert "CRC" in line
    assert "[while running" not in line


def broken_connection() -> Exception:
    state = _channel._RPCState((), None, None, grpc.StatusCode.UNKNOWN, "the worker is not known any more")
    return _channel._InactiveRpcError(state)


@pytest.mark.parametrize(
    ("error", "said"), [(InputError("bad"), False), (broken_connection(), False), (ValueError("worse"), True)]
)
def test_other_errors_are_told_in_full(error: Exception, said: bool, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise error
    except Exception:
        pages = traceback.format_exc()
    quiet()
    for text in ("before", pages, "after"):
        print(text, file=sys.stderr)
    assert capsys.readouterr().err == (f"before\n{pages}\nafter\n" if said else "before\nafter\n")
    for name in ("root", "PrismRunner", "apache_beam.runners.worker.sdk_worker"):
        for message in (f"bundle inst003 failed:{pages}", repr(pages)):
            assert is_news(logging.LogRecord(name, logging.ERROR, "", 0, message, None, None)) == said


@pytest.mark.parametrize("are_news", [True, False])
def test_errors_wait_for_the_end_of_the_job(are_news: bool, capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    try:
        quiet()
        hold()
        for moment in ("during", "after"):
            logging.getLogger("apache_beam.runners.worker").error("Error %s", moment)
            print(f"Traceback {moment}", file=sys.stderr)
            logging.getLogger("apache_beam.runners.worker").warning("Warning %s", moment)
            if moment == "during":
                release(are_news)
    finally:
        release(True)
        logging.getLogger().removeHandler(handler)
    told = "Warning during", "Error during", "Traceback during", "Error after", "Traceback after", "Warning after"
    expected = told if are_news else ("Warning during", "Warning after")
    assert capsys.readouterr().err.splitlines() == list(expected)
