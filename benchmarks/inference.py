"""Stage 2 and what else makes vectors: `python -m benchmarks.inference [INPUT] [--rows N] [--out FILE]`.

INPUT is a Parquet file with a `text` column (default: WikiText-103's validation split beside the checkout). All
subjects see the same N rows of at most 256 tokens with all-MiniLM-L6-v2 and take turns, `--rounds` times; seconds are
medians. 1.0 x is plain transformers: file-order batches of 32, padded to their longest, fp32. `sentence-transformers`
starts from the text, all others from token ids. A machine without a GPU is meant, as the peers run on its processor;
where that has no bf16, what is in bf16 elsewhere is in fp32, as by `--precision auto`. A Beam job's start-up, model
loading included, is what it takes over one row, and taken off in the ratios. What an empty cache costs is what passes
outside the model with it and without: runs differ by more than that. "At most" is the ratio that a model of nothing but
its bare matrix products would have. Writes the figures as JSON to FILE.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import inference_peers as peers
from pipelines import compress, demo, embed
from pipelines.inference import CachedEncoder, EmbeddingModel, load_model
from pipelines.inference.model import has_bf16
from pipelines.inference.rows import from_sequences
from pipelines.tokenizing import Tokenizer, load_tokenizer

VALIDATION = Path(__file__).parents[2] / "shared/data/wikitext-103-v1/validation-00000-of-00001.parquet"
BASE = "plain transformers, file order, fp32"
BEST = "bf16" if has_bf16("cpu") else "fp32"
DTYPES = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if BEST == "bf16" else {})
COLD, EMPTY = f"tokzip, {BEST}, cold", f"tokzip, {BEST}, cold, empty disk cache"
OUTSIDE = ": outside the model"


def quiet_job(command: Callable[[list[str]], int], *args: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = command([*map(str, args), "--no-progress"])
    if code:
        raise SystemExit(f"a job ended with exit code {code}")


class Bench:
    """The rows in every form that a subject wants, and a folder for what they write."""

    def __init__(self, texts: list[str], scratch: Path) -> None:
        self.texts, self.scratch, self.folder, self.runs = texts, scratch, demo.model_folder(), 0
        self.in_model = 0.0  # seconds of the last run of `encode`
        tokens = Tokenizer(load_tokenizer(str(self.folder))).encode(pa.array(texts, pa.string()))
        self.rows = from_sequences([np.asarray(row.values) for row in tokens])
        models = {p: load_model(str(self.folder), precision=p, max_length=peers.LONGEST) for p in DTYPES}
        self.exact, self.fast = models["fp32"], models[BEST]
        flat, lengths = self.exact.clip(self.rows)[0].layout(self.exact.settings.prefix, self.exact.settings.suffix)
        # Copies: a view would be pickled with all that it is a view of.
        self.ids = [part.clone() for part in torch.from_numpy(flat).split(lengths.tolist())]
        self.tokens = int(lengths.sum())
        for name, part in (("rows", texts), ("one", ["A row of its own."])):
            pq.write_table(pa.table({"text": pa.array(part, pa.string())}), scratch / f"{name}.parquet")
            quiet_job(compress.main, "--input", scratch / f"{name}.parquet", "--output", scratch / f"{name}-tokens",
                      "--tokenizer", self.folder)  # fmt: skip

    def new_folder(self) -> Path:
        self.runs += 1
        return self.scratch / f"run-{self.runs}"

    def encode(self, model: EmbeddingModel, cache: str) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            encoder = CachedEncoder(model, cache.format(new=self.new_folder()))
            vectors = encoder.encode(self.rows)
            encoder.close()
            self.in_model = encoder.stats.get("seconds.model", 0.0)
            return vectors

        return run

    def cached(self, share_of_new: float) -> str:
        """A disk cache that has all rows but some, spread evenly."""
        spec, every = f"disk:{self.new_folder()}:1GB", round(1 / share_of_new) if share_of_new else 0
        keep = np.array([i for i in range(len(self.rows)) if not every or i % every], np.int64)
        encoder = CachedEncoder(self.fast, spec)
        encoder.encode(self.rows.take(keep))
        encoder.close()
        return spec

    def partly_new(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Make a cache that lacks a tenth of the rows; encode all with it."""
        spec: list[str] = []

        def encode() -> None:
            encoder = CachedEncoder(self.fast, spec.pop())
            encoder.encode(self.rows)
            encoder.close()

        return lambda: spec.append(self.cached(0.1)), encode

    def job(self, rows: str, cache: str) -> Callable[[], None]:
        return lambda: quiet_job(
            embed.main, "--input", self.scratch / f"{rows}-tokens", "--output", self.new_folder(), "--model",
            self.folder, "--max-length", peers.LONGEST, "--precision", BEST, "--cache", cache,
        )  # fmt: skip


def subjects(bench: Bench) -> dict[str, tuple[Callable[[], None] | None, Callable[[], Any]]]:
    """By name: what to do before each run, not timed, and the run."""
    folder, ids = bench.folder, bench.ids
    full = bench.cached(0)
    bare = bench.fast.matrix_product_seconds
    made: dict[str, Callable[[], Any]] = {
        BASE: peers.transformers_plain(folder, ids, False),
        "plain transformers, sorted, fp32": peers.transformers_plain(folder, ids, True),
        "Beam RunInference, one row": peers.run_inference(folder, ids[:1], DTYPES[BEST]),
        "tokzip, fp32, cold": bench.encode(bench.exact, "none"),
        COLD: bench.encode(bench.fast, "none"),
        EMPTY: bench.encode(bench.fast, "disk:{new}:1GB"),
        f"bare packed loop, {BEST}": lambda: bench.fast.embed(bench.rows),
        f"bare matrix products, {BEST}": lambda: bare(2048) * bench.tokens,
        "tokzip embed, job over one row": bench.job("one", "none"),
        f"tokzip embed, {BEST}, cold": bench.job("rows", "none"),
        "tokzip embed, all cached": bench.job("rows", full),
        "tokzip, all cached on disk": bench.encode(bench.fast, full),
    }
    for name, dtype in DTYPES.items():
        made[f"sentence-transformers, {name}"] = peers.sentence_transformers(folder, bench.texts, dtype)
        made[f"Beam RunInference, Hugging Face handler, {name}"] = peers.run_inference(folder, ids, dtype)
    prepare, rerun = bench.partly_new()
    return {**{name: (None, run) for name, run in made.items()}, "tokzip, 10 % new rows": (prepare, rerun)}


def measure(bench: Bench, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds by subject, a figure a round; and the lowest cosine to the base of those that give their vectors."""
    seconds: dict[str, list[float]] = {}
    cosines: dict[str, float] = {}
    expected: np.ndarray | None = None
    todo = subjects(bench)
    for round_ in range(rounds):
        for name, (prepare, run) in todo.items():
            if prepare:
                prepare()
            start = time.perf_counter()
            result = run()
            took = time.perf_counter() - start
            seconds.setdefault(name, []).append(result if isinstance(result, float) else took)
            if name in (COLD, EMPTY):
                seconds.setdefault(f"{name}{OUTSIDE}", []).append(took - bench.in_model)
            if isinstance(result, np.ndarray):
                expected = result if expected is None else expected
                norms = np.linalg.norm(result, axis=1) * np.linalg.norm(expected, axis=1)
                cosines[name] = float(((result * expected).sum(1) / norms).min())
        print(f"round {round_ + 1} of {rounds} done", flush=True)
    return seconds, cosines


def ratios(s: dict[str, float]) -> dict[str, float]:
    """The targets' figures, from median seconds."""
    cold, start = s[COLD], s["tokzip embed, job over one row"]
    bare, loop = s[f"bare matrix products, {BEST}"], s[f"bare packed loop, {BEST}"]
    figures = {"fp32, cold, against plain transformers": s[BASE] / s["tokzip, fp32, cold"]}
    against = {"plain transformers": s[BASE]}
    for name in DTYPES:
        against[f"sentence-transformers {name}"] = s[f"sentence-transformers, {name}"]
        job = s[f"Beam RunInference, Hugging Face handler, {name}"]
        against[f"Beam RunInference {name}"] = job - s["Beam RunInference, one row"]
    for name, seconds in against.items():
        figures[f"{BEST}, cold, against {name}"] = seconds / cold
        figures[f"{BEST}, cold, against {name}: at most"] = seconds / bare
    return figures | {
        f"{BEST}, cold, share of the bare matrix products": bare / cold,
        "bare packed loop, share of the bare matrix products": bare / loop,
        "whole Beam job against the bare packed loop": loop / max(1e-9, s[f"tokzip embed, {BEST}, cold"] - start),
        "rerun, all cached on disk, against cold": cold / s["tokzip, all cached on disk"],
        "rerun, 10 % new rows, against cold": cold / s["tokzip, 10 % new rows"],
        "cost of an empty disk cache": (s[f"{EMPTY}{OUTSIDE}"] - s[f"{COLD}{OUTSIDE}"]) / cold,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("input", type=Path, nargs="?", default=VALIDATION)
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/inference.json"))
    args = parser.parse_args()
    if BEST == "fp32":
        print("this processor has no bf16: everything is in fp32")
    table = pq.read_table(args.input, columns=["text"])
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(table["text"].slice(0, args.rows).to_pylist(), Path(scratch))
        seconds, cosines = measure(bench, args.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    figures = ratios(medians)
    print(f"\n{len(bench.rows):,} rows, {bench.tokens:,} tokens, {torch.get_num_threads()} threads, medians\n")
    print(f"{'':<56}{'seconds':>9}{'µs/token':>10}{'x':>11}  lowest cosine")
    for name, median in medians.items():
        cosine = f"{cosines[name]:.6f}" if name in cosines else ""
        print(f"{name:<56}{median:>9.3f}{1e6 * median / bench.tokens:>10.1f}{medians[BASE] / median:>11.2f}  {cosine}")
    print()
    for name, value in figures.items():
        print(f"{name:<56}{value:>9.3f}")
    report = {
        "rows": len(bench.rows),
        "tokens": bench.tokens,
        "seconds": seconds,
        "cosines": cosines,
        "ratios": figures,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
