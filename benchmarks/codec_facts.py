"""What `python -m benchmarks.codecs` prints besides its table: padded rows, single rows, threads, vocabularies, starts.

Imports tokzip_core; needs nothing else of tokzip.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import tokzip_core as tz

PADDED = 512
VOCABULARIES = (30_522, 50_257, 128_256, 262_144)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def blob_bytes(blobs: tz.TokenBlobArray) -> int:
    offsets = np.frombuffer(blobs.storage.buffers()[1], np.int32)
    return int(offsets[len(blobs)] - offsets[0])


def rows_of(values: Any, sizes: Any) -> pa.ListArray:
    offsets = np.concatenate((np.zeros(1, np.int32), np.cumsum(sizes).astype(np.int32)))
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.astype(np.int32)))


def padded_rows(columns: list[pa.ListArray]) -> Iterator[dict[str, Any]]:
    """Rows cut and padded with zeros to PADDED tokens, under `rle+…`, against the same rows unpadded without it."""

    def cut(column: pa.ListArray, pad: bool) -> pa.ListArray:
        sizes = np.minimum(np.diff(column.offsets.to_numpy()), PADDED)
        place = np.arange(PADDED) < sizes[:, None]
        grid = np.zeros(place.shape, np.int32)
        starts = column.offsets.to_numpy()[:-1]
        grid[place] = column.values.to_numpy()[(starts[:, None] + np.arange(PADDED))[place]]
        return rows_of(grid.ravel(), np.full(len(sizes), PADDED)) if pad else rows_of(grid[place], sizes)

    last = columns[-1]
    for plain in ("huffman", "arithmetic"):
        sizes = {}
        for name, pad in ((plain, False), (f"rle+{plain}", True)):
            codebook = tz.train([cut(c, pad) for c in columns[:-1]], codec=name)
            sizes[name] = blob_bytes(tz.encode(cut(last, pad), codebook))
        more = (sizes[f"rle+{plain}"] - sizes[plain]) / len(last)
        yield {"fact": f"rows padded to {PADDED}, rle+{plain}: bytes a row more than unpadded {plain}", "value": more}


def single_rows(column: pa.ListArray, codebooks: dict[str, tz.Codebook]) -> Iterator[dict[str, Any]]:
    rows = np.random.default_rng(0).integers(0, len(column), 2_000).tolist()
    for name, codebook in codebooks.items():
        store = tz.TokenStore(tz.encode(column, codebook), codebook)
        taken = [seconds(partial(store.__getitem__, i)) for i in rows]
        yield {"fact": f"one random row of a TokenStore, {name}: median µs", "value": 1e6 * statistics.median(taken)}


def two_threads(column: pa.ListArray, codebooks: dict[str, tz.Codebook], rounds: int) -> Iterator[dict[str, Any]]:
    """Both halves of a column decoded over and over by one thread, and by two at once that are already there."""
    half = int(np.searchsorted(column.offsets.to_numpy(), column.offsets[-1].as_py() // 2))
    for name, codebook in codebooks.items():
        halves = [tz.encode(column.slice(0, half), codebook), tz.encode(column.slice(half), codebook)]
        times = 1 + int(0.1 / seconds(partial(tz.decode, halves[0], codebook)))

        def work(blobs: Any, codebook: Any = codebook, times: int = times) -> None:
            for _ in range(times):
                tz.decode(blobs, codebook)

        def at_once(halves: Any = halves, work: Any = work) -> float:
            barrier = threading.Barrier(3)

            def begin(blobs: Any) -> None:
                work(blobs)  # the thread's first memory is fresh pages
                barrier.wait()
                work(blobs)

            threads = [threading.Thread(target=begin, args=(h,)) for h in halves]
            for thread in threads:
                thread.start()
            barrier.wait()
            return seconds(lambda: [thread.join() for thread in threads])

        ratios = [sum(seconds(partial(work, h)) for h in halves) / at_once() for _ in range(rounds)]
        yield {"fact": f"two threads against one, decode, {name}: times as fast", "value": statistics.median(ratios)}


def with_vocabulary(columns: list[pa.ListArray], size: int) -> list[pa.ListArray]:
    """The same rows with ids under `size`: the most frequent neighbours become one token, as in byte-pair coding."""
    base = VOCABULARIES[0]
    flat = np.concatenate([c.flatten().to_numpy() for c in columns]).astype(np.int64)
    sizes = np.concatenate([np.diff(c.offsets.to_numpy()) for c in columns])
    row = np.repeat(np.arange(len(sizes)), sizes)
    pairs = np.where(row[1:] == row[:-1], flat[:-1] * base + flat[1:], -1)
    kinds, counts = np.unique(pairs[pairs >= 0], return_counts=True)
    chosen = np.sort(kinds[np.argsort(-counts, kind="stable")[: size - base]])
    at = np.searchsorted(chosen, pairs) % max(1, len(chosen))
    merge = chosen[at] == pairs if len(chosen) else np.zeros(len(pairs), bool)
    place = np.arange(len(merge))
    run = place - np.maximum.accumulate(np.where(merge & ~np.concatenate(([False], merge[:-1])), place, 0))
    merge &= run % 2 == 0  # of pairs that overlap, every other one
    flat[:-1][merge] = base + at[merge]
    keep = np.concatenate(([True], ~merge))
    flat, row = flat[keep], row[keep]
    ends = np.cumsum([len(c) for c in columns])
    per_row = np.bincount(row, minlength=len(sizes))
    bounds = np.concatenate(([0], np.cumsum(per_row)))
    starts = np.concatenate(([0], ends[:-1]))
    return [rows_of(flat[bounds[a] : bounds[b]], per_row[a:b]) for a, b in zip(starts, ends, strict=True)]


def vocabularies(columns: list[pa.ListArray], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for size in VOCABULARIES:
        some = with_vocabulary(columns, size)
        tokens = sum(len(c.flatten()) for c in some[:-1])
        for name in names:
            start = time.perf_counter()
            codebook = tz.train(some[:-1], codec=name)
            took = time.perf_counter() - start
            blobs = tz.encode(some[-1], codebook)
            assert tz.decode(blobs, codebook).equals(some[-1])
            bits = 8 * blob_bytes(blobs) / len(some[-1].flatten())
            facts = f"{len(codebook.to_bytes()):,} bytes of codebook, {bits:.3f} bits a token"
            yield {
                "fact": f"vocabulary {size:,}, {name}: {facts}, trained on {tokens / 1e6:.1f} M tokens in s",
                "value": took,
            }


def starts(names: list[str]) -> Iterator[dict[str, Any]]:
    """Seconds until tokzip is imported, and from then until a codec has encoded and decoded for the first time."""
    rows = pa.array([[1, 2, 3], [4]])
    program = (
        "import time, sys; a = time.perf_counter(); import tokzip_core as tz; b = time.perf_counter();"
        "import pyarrow as pa; rows = pa.array([[1, 2, 3], [4]]);"
        "book = tz.Codebook.from_bytes(bytes.fromhex(sys.argv[1]));"
        "tz.decode(tz.encode(rows, book), book); print(b - a, time.perf_counter() - b)"
    )
    # Without what keeps Python from keeping the modules that it has compiled: numba alone has some 500.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as cache:

        def start(name: str, kernels: str) -> list[str]:
            codebook = tz.train(rows, codec=name).to_bytes().hex()
            variables = {**environment, "NUMBA_CACHE_DIR": str(Path(cache) / kernels)}
            command = [sys.executable, "-c", program, codebook]
            return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout.split()

        start("raw", "compiled modules")
        for name in names:
            first, second = start(name, name), start(name, name)
            yield {"fact": f"first use of {name} on a fresh machine: s", "value": float(first[1])}
            yield {"fact": f"first use of {name} in a later process: s", "value": float(second[1])}
    yield {"fact": "import tokzip_core: s", "value": float(second[0])}
