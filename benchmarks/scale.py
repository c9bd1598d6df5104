"""Seconds and memory of both stages as the data grow: `python -m benchmarks.scale INPUT`. Imports demo, not Beam.

INPUT is a folder of Parquet shards with a `text` column: the data of size 1. Size N is N copies of every row, each
copy's rows with a number before them, so that no row of one copy is a row of another and nothing is found in a cache.
They come as more shards, as one shard (`--shapes shard`), as one shard of a single row group (`group`), or as one row
of so many million tokens (`row`). Each command is a process of its own. Its memory is the resident memory of it and all
its descendants (Prism is one) together, the highest of samples taken 20 times a second, and each process's own peak as
the kernel keeps it (VmHWM of /proc, so Linux). Growth is the exponent g of `peak = c * size ** g`, by least squares.

Stage 2 runs a BERT of one layer and random weights over all rows, since it is memory that is looked for; then the model
of `--model` over `--model-rows` rows, for its speed. Last, `--shards` shards of one row each go through both stages
twice: what a split costs besides its rows, and what a run costs that has nothing to do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import demo

PAGE = os.sysconf("SC_PAGE_SIZE")
CACHE = "memory:8MB,disk:{}:20GB"  # the first is full from size 1 on
SCHEMA = pa.schema([("text", pa.string())])


# ---- data


def row_groups(source: Path, fraction: float) -> Iterator[tuple[Path, pa.Array]]:
    """(shard, the first `fraction` of the texts) of every row group."""
    for path in sorted(source.glob("*.parquet")):
        file = pq.ParquetFile(path)
        for g in range(file.num_row_groups):
            texts = file.read_row_group(g, columns=["text"])["text"].combine_chunks().cast(pa.string())
            yield path, texts[: math.ceil(len(texts) * fraction)]


def copy_of(texts: pa.Array, number: int) -> pa.Table:
    return pa.table([pc.binary_join_element_wise(str(number), texts, " ")], schema=SCHEMA)


def write_text(source: Path, folder: Path, size: int, shape: str, fraction: float) -> None:
    """The data of that size and shape, as a new folder."""
    if folder.exists():
        return
    made = folder.with_suffix(".tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    if shape == "shards":
        writers: dict[Path, pq.ParquetWriter] = {}
        for number in range(size):
            for path, texts in row_groups(source, fraction):
                name = made / f"{number:03d}-{path.name}"
                if name not in writers:
                    writers[name] = pq.ParquetWriter(name, SCHEMA, compression="zstd")
                writers[name].write_table(copy_of(texts, number))
        for writer in writers.values():
            writer.close()
    elif shape == "row":
        words = pc.binary_join(pa.scalar(next(row_groups(source, 1.0))[1].to_pylist(), pa.list_(pa.string())), " ")
        some = words.as_py()[: 1 << 20]
        pq.write_table(pa.table({"text": ["a", " ".join([some] * 4 * size), "b"]}), made / "row.parquet")
    else:
        parts = (copy_of(texts, n) for n in range(size) for _, texts in row_groups(source, fraction))
        with pq.ParquetWriter(made / "one.parquet", SCHEMA, compression="zstd") as writer:
            if shape == "group":
                whole = pa.concat_tables(parts)
                writer.write_table(whole, row_group_size=len(whole))
            else:
                for part in parts:
                    writer.write_table(part)
    made.rename(folder)


def save_small_model(folder: Path, tokenizer: Path) -> None:
    """A BERT of one narrow layer and random weights, for the tokens of `tokenizer`."""
    import tokenizers
    import transformers

    size = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab_size()
    config = transformers.BertConfig(
        vocab_size=size,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=128,
        max_position_embeddings=256,
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    shutil.copyfile(tokenizer / "tokenizer.json", folder / "tokenizer.json")


# ---- one command, watched


def descendants(root: int) -> set[int]:
    """The process and all that it started, directly or not, that are still there."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), [root]
    while todo:
        found.add(pid := todo.pop())
        todo += children.get(pid, [])
    return found


class Watch(threading.Thread):
    """Samples the memory of a process and its descendants until it has ended."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.peak = 0  # bytes, of all together
        self.processes: dict[str, int] = {}  # "name pid": its peak in bytes

    def run(self) -> None:
        while self.process.poll() is None:
            total = 0
            for pid in descendants(self.process.pid):
                try:
                    total += PAGE * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                except (OSError, IndexError):
                    continue
                if "VmHWM" in status:
                    self.processes[f"{status['Name'].strip()} {pid}"] = 1024 * int(status["VmHWM"].split()[0])
            self.peak = max(self.peak, total)
            time.sleep(0.05)


def command(*arguments: object) -> dict[str, Any]:
    """Run `tokzip ARGUMENTS`, seconds and memory watched; the command's own summary comes along."""
    argv = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    watch = Watch(process)
    watch.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    watch.join()
    if code:
        raise SystemExit(f"{' '.join(argv)}: exit {code}")
    output = Path(str(arguments[arguments.index("--output") + 1]))
    summary = json.loads((output / "_tokzip" / "summary.json").read_text())
    return {"seconds": seconds, "peak": watch.peak, "processes": watch.processes, "summary": summary}


# ---- what is measured


class Bench:
    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.model = work / "model"
        if not self.model.exists():
            save_small_model(self.model, args.model)

    def text(self, size: int, shape: str) -> Path:
        folder = self.work / f"text-{self.args.fraction:g}-{shape}-{size}"
        write_text(self.args.input, folder, size, shape, self.args.fraction)
        return folder

    def run(self, stage: str, runner: str, source: Path, target: Path, *more: object) -> dict[str, Any]:
        argv: list[object] = [
            stage,
            "--input",
            source,
            "--output",
            target,
            f"--runner={runner}",
            "--no-progress",
            *more,
        ]
        if stage == "compress":
            argv += ["--tokenizer", self.args.model]
        return command(*argv)

    def grown(self, runner: str, shape: str, size: int) -> Iterator[dict[str, Any]]:
        """Both stages over the data of that size."""
        text = self.text(size, shape)
        bytes_of_text = sum(
            meta.row_group(g).column(0).total_uncompressed_size
            for path in text.iterdir()
            for meta in [pq.read_metadata(path)]
            for g in range(meta.num_row_groups)
        )
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            tokens, vectors, cache = (Path(scratch, n) for n in ("tokens", "vectors", "cache"))
            made = {"compress": lambda: self.run("compress", runner, text, tokens)}
            made["embed"] = lambda: self.run(
                "embed", runner, tokens, vectors, "--model", self.model, "--cache", CACHE.format(cache)
            )
            for stage, run in made.items():
                if stage in self.args.stages:
                    told = {"stage": stage, "runner": runner, "shape": shape, "size": size, "text_bytes": bytes_of_text}
                    yield told | figures(run())
                elif stage == "compress":
                    run()

    def model_speed(self) -> dict[str, Any]:
        """The real model over some rows."""
        rows = pa.concat_arrays([texts for _, texts in row_groups(self.args.input, 1.0)])
        some = rows.take(pa.array(range(0, len(rows), max(1, len(rows) // self.args.model_rows))))
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            text, tokens, vectors = (Path(scratch, n) for n in ("text", "tokens", "vectors"))
            text.mkdir()
            pq.write_table(pa.table([some], schema=SCHEMA), text / "rows.parquet")
            self.run("compress", "FnApiRunner", text, tokens)
            argv = ["--model", self.args.model, "--cache", "none"]
            return {"rows": len(some)} | figures(self.run("embed", "FnApiRunner", tokens, vectors, *argv))

    def splits(self) -> Iterator[dict[str, Any]]:
        """Shards of one row each, twice: the second run has nothing to do."""
        with tempfile.TemporaryDirectory(dir=self.work) as scratch:
            text, tokens, vectors = (Path(scratch, n) for n in ("text", "tokens", "vectors"))
            text.mkdir()
            for i in range(self.args.shards):
                pq.write_table(pa.table({"text": [f"row {i} of so many"]}), text / f"{i:06d}.parquet")
            for stage, more in (("compress", []), ("embed", ["--model", self.model, "--cache", "none"])):
                source, target = (text, tokens) if stage == "compress" else (tokens, vectors)
                for which in ("first", "again"):
                    yield {"stage": stage, "which": which} | figures(
                        self.run(stage, "FnApiRunner", source, target, *more)
                    )


def figures(run: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a command: bytes, seconds, counts."""
    summary = run["summary"]
    names = ("splits", "rows_in", "tokens", "tokens_computed", "output_bytes", "peak_memory_bytes", "seconds")
    kept = {f"summary_{n}" if n in ("seconds",) else n: summary[n] for n in names if n in summary}
    speed = summary.get("tokens", 0) / summary["seconds"]["wall"]
    return {**kept, "seconds": round(run["seconds"], 2), "tokens_per_second": round(speed)} | {
        "peak": run["peak"],
        "processes": run["processes"],
    }


def growth(points: list[tuple[int, int]]) -> float:
    """g of `peak = c * size ** g`, by least squares of the logarithms; 0 for a single size."""
    x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
    mx, my = sum(x) / len(x), sum(y) / len(y)
    squares = sum((a - mx) ** 2 for a in x)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / squares if squares else 0.0


def show(run: dict[str, Any]) -> str:
    # seconds of the process, and of the run in it without imports
    each = ", ".join(f"{n.split()[0]} {p / 1e6:,.0f}" for n, p in run["processes"].items() if p > 20e6)
    what = " ".join(str(run[n]) for n in ("stage", "runner", "shape", "size", "which") if n in run)
    return (
        f"{what:<36}{run['seconds']:8.1f} s{run['summary_seconds']['wall']:8.1f}{run.get('tokens', 0):13,} tokens"
        f"{run['tokens_per_second']:12,} tokens/s{run['peak'] / 1e6:8,.0f} MB ({each})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("--sizes", type=lambda t: [int(x) for x in t.split(",")], default=[1, 3, 10])
    parser.add_argument("--runners", type=lambda t: t.split(","), default=["FnApiRunner", "PrismRunner"])
    parser.add_argument("--shapes", type=lambda t: t.split(","), default=["shards"], help="shards,shard,group,row")
    parser.add_argument("--stages", type=lambda t: t.split(","), default=["compress", "embed"])
    parser.add_argument("--fraction", type=float, default=1.0, help="of the rows of each row group")
    parser.add_argument("--model", type=Path, help="default: the installed all-MiniLM-L6-v2")
    parser.add_argument("--model-rows", type=int, default=3000, help="0: not measured")
    parser.add_argument("--shards", type=int, default=1000, help="0: not measured")
    parser.add_argument("--work", type=Path, help="folder for data, kept (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="file that all figures are written to")
    args = parser.parse_args()
    args.model = args.model or demo.model_folder()
    found: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version(), "fraction": args.fraction}
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(args, work.resolve())
        found["grown"] = []
        for runner, shape in ((r, s) for r in args.runners for s in args.shapes):
            for size in args.sizes:
                for run in bench.grown(runner, shape, size):
                    found["grown"].append(run)
                    print(show(run), flush=True)
            for stage in args.stages:
                runs = [r for r in found["grown"] if (r["stage"], r["runner"], r["shape"]) == (stage, runner, shape)]
                peaks = [(r["size"], r["peak"]) for r in runs]
                print(
                    f"{stage} {runner} {shape}: memory grows with exponent {growth(peaks):.3f}; "
                    f"{peaks[-1][1] / peaks[0][1]:.3f} times as much at size {peaks[-1][0]} as at {peaks[0][0]}",
                    flush=True,
                )
        if args.model_rows:
            found["model"] = bench.model_speed()
            print("the real model: " + show(found["model"]), flush=True)
        found["splits"] = []
        for run in bench.splits() if args.shards else ():
            found["splits"].append(run)
            print(show(run), flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
