"""Stage 1 against the bare `tokenizers` loop over the same rows: `python -m benchmarks.compress INPUT`.

INPUT is a folder of Parquet shards with a `text` column; it is taken `--times` times over. The job runs as the
installed command; what a job over one empty shard takes is its start-up, and taken off. Bare loop, job and empty job
take turns, `--rounds` times; the medians are compared.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import demo


def bare(folder: Path, model: Path) -> tuple[int, float]:
    """Rows, and seconds, of `encode_batch_fast` over every row of the folder, on all cores, reading included."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows, start = 0, time.perf_counter()
    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(8192, columns=["text"]):
            rows += len(tokenizer.encode_batch_fast(batch.column(0).to_pylist(), add_special_tokens=False))
    return rows, time.perf_counter() - start


def job(folder: Path, model: Path, options: list[str]) -> float:
    """Seconds of the whole command."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "pipelines.cli", "compress", "--input", str(folder), "--output", output]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--tokenizer", str(model), *options], check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr
        )
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compress", description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args, options = parser.parse_known_args()
    model = demo.model_folder()
    with tempfile.TemporaryDirectory() as scratch:
        text, empty = Path(scratch, "text"), Path(scratch, "empty")
        text.mkdir()
        empty.mkdir()
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), empty / "empty.parquet")
        for i in range(args.times):
            for path in sorted(args.input.glob("*.parquet")):
                shutil.copyfile(path, text / f"{i}-{path.name}")
        seconds: dict[str, list[float]] = {"bare": [], "start-up": [], "job": []}
        for _ in range(args.rounds):
            seconds["start-up"].append(job(empty, model, options))
            seconds["job"].append(job(text, model, options))
            rows, took = bare(text, model)
            seconds["bare"].append(took)
            print({k: round(v[-1], 2) for k, v in seconds.items()}, flush=True)
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    work = medians["job"] - medians["start-up"]
    print(f"{rows:,} rows; medians of {args.rounds}: " + ", ".join(f"{k} {v:.2f} s" for k, v in medians.items()))
    print(f"rows/s: bare {rows / medians['bare']:,.0f}, job {rows / work:,.0f}: {medians['bare'] / work:.1f} x")


if __name__ == "__main__":
    main()
