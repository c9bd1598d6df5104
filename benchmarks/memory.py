"""Memory that a corpus's token ids take, held in different ways: `python -m benchmarks.memory INPUT [--codecs A,B]`.

INPUT is a folder of Parquet shards with a `text` column. The ids are written to files once; then a fresh process for
each way loads them, and tells by how much its resident anonymous memory (RssAnon of /proc, so Linux) has grown since it
did the same with a file of few rows: imports and compiled code are not counted, a codebook's tables are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tokzip_core as tz
from benchmarks.codecs import token_columns

PLAIN = {"Python lists of int": list, "numpy int64": np.int64, "numpy uint16": np.uint16}
ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def load(way: str, folder: Path) -> Any:
    if way not in PLAIN:
        return tz.TokenStore.open(folder)
    column = pq.read_table(folder / "tokens.parquet", use_threads=False)["tokens"].combine_chunks()
    if PLAIN[way] is list:
        return column.to_pylist()
    return column.values.to_numpy().astype(PLAIN[way]), column.offsets.to_numpy().astype(np.int64)


def resident() -> int:
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def measure(way: str, few: Path, full: Path) -> tuple[int, int]:
    """Bytes of memory, and those of them that grow with the rows (of a store; else all)."""
    len(load(way, few)[0])  # a store decodes, so compiles
    before = resident()
    held = load(way, full)
    grown = resident() - before
    return grown, getattr(held, "nbytes", grown)


def write(folder: Path, columns: list[pa.ListArray], way: str) -> None:
    if way not in PLAIN:
        codebook = tz.train(columns, way)
        codebook.save(str(folder / "_tokzip" / "codebook.tzc"))
        columns = [tz.encode(column, codebook) for column in columns]
    pq.write_table(pa.table({"tokens": pa.chunked_array(columns)}), folder / "tokens.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("--codecs", default="raw,huffman,huffman-o1,context")
    args = parser.parse_args()
    os.environ |= ENVIRONMENT  # what is freed goes back to the system at once
    tokens = token_columns(args.input)
    n = sum(len(t.values) for t in tokens)
    print(f"{sum(map(len, tokens)):,} rows, {n:,} tokens\n{'':24}{'MB':>8}{'rows alone':>12}{'bytes a token':>15}")
    for way in [*PLAIN, *args.codecs.split(",")]:
        with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as full:
            write(Path(few), [tokens[0][:100]], way)
            write(Path(full), tokens, way)
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                held, rows = fresh.apply(measure, (way, Path(few), Path(full)))
        store = "" if way in PLAIN else "TokenStore, "
        print(f"{store + way:24}{held / 1e6:8.1f}{rows / 1e6:12.1f}{rows / n:15.2f}", flush=True)


if __name__ == "__main__":
    main()
