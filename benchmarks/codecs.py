"""Every codec, and what else stores token ids: `python -m benchmarks.codecs INPUT [--out FOLDER]`.

INPUT is a folder of Parquet shards with a `text` column. U: trained on all shards but the last, coding the last, the
codebook not counted. C: trained on and coding all shards, the codebook counted. Speeds are of the last shard, one
thread, all subjects taking turns `--rounds` times; medians, and their ratios to Pz: pyarrow's read of the same rows as
Parquet `list<uint16>` zstd-3 (decode), and its write (encode). Writes `codecs.json` and `codecs.png` to FOLDER. The
peers come with the extra `bench`, which `make install` has.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

import tokzip_core as tz
from benchmarks import codec_facts
from benchmarks.codec_facts import blob_bytes
from pipelines import demo
from pipelines.tokenizing import Tokenizer, load_tokenizer


@dataclass
class Subject:
    """Something to measure on a column: its stored bytes, and how it writes and reads."""

    name: str
    size: int
    encode: Callable[[], Any] | None = None
    decode: Callable[[], Any] | None = None


def token_columns(folder: Path) -> list[pa.ListArray]:
    tokenizer = Tokenizer(load_tokenizer(str(demo.model_folder())))
    shards = (
        pq.read_table(path, columns=["text"])["text"].combine_chunks() for path in sorted(folder.glob("*.parquet"))
    )
    return [tokenizer.encode(text) for text in shards]


def parquet(column: pa.ListArray, name: str, compression: str, level: int | None) -> Subject:
    table = pa.table({"tokens": column.cast(pa.list_(pa.uint16()))})

    def write() -> pa.Buffer:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=compression, compression_level=level)
        return sink.getvalue()

    stored = write()

    def read() -> pa.Table:
        return pq.ParquetFile(pa.BufferReader(stored)).read(use_threads=False)

    assert read()["tokens"].combine_chunks().equals(table["tokens"].combine_chunks())
    return Subject(name, len(stored), write, read)


def ipc(column: pa.ListArray) -> Subject:
    table = pa.table({"tokens": column.cast(pa.list_(pa.uint16()))})
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 3), use_threads=False)

    def write() -> pa.Buffer:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        return sink.getvalue()

    stored = write()

    def read() -> pa.Table:
        return pa.ipc.open_file(stored, options=pa.ipc.IpcReadOptions(use_threads=False)).read_all()

    return Subject("Arrow IPC zstd-3", len(stored), write, read)


def file(column: pa.ListArray, codebook: tz.Codebook) -> Subject:
    """The blobs in Parquet as the pipeline writes them: the whole file, read and decoded."""
    schema = pa.schema([("tokens", tz.TokenBlobType(codebook.codec, codebook.version, codebook.id))])

    def write() -> bytes:
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, schema, **tz.parquet_options(schema)) as writer:
            writer.write_table(pa.table([tz.encode(column, codebook)], schema=schema))
            writer.add_key_value_metadata(tz.codebook_metadata(codebook))
        return sink.getvalue()

    stored = write()

    def read() -> pa.ListArray:
        source = pq.ParquetFile(pa.BufferReader(stored), page_checksum_verification=True)
        return tz.decode(source.read(use_threads=False)["tokens"], codebook)

    assert read().equals(column)
    return Subject(f"{codebook.codec} in a file", len(stored), write, read)


def constriction_huffman(column: pa.ListArray) -> Subject:
    """The peer's own Huffman code, over the whole shard as one message: no row can be read alone."""
    import constriction

    symbols, ids = np.unique(column.flatten().to_numpy(), return_inverse=True)
    weights = np.bincount(ids, minlength=len(symbols)).astype(np.float32)
    encoder_code = constriction.symbol.huffman.EncoderHuffmanTree(weights)
    decoder_code = constriction.symbol.huffman.DecoderHuffmanTree(weights)
    some = ids[:200_000].tolist()  # a call a symbol

    def write() -> Any:
        encoder = constriction.symbol.QueueEncoder()
        for symbol in some:
            encoder.encode_symbol(symbol, encoder_code)
        return encoder.get_compressed()

    stored, bits = write()

    def read() -> None:
        decoder = constriction.symbol.QueueDecoder(stored)
        for _ in range(len(some)):
            decoder.decode_symbol(decoder_code)

    return Subject("constriction Huffman", -(-int(bits) * len(ids) // (8 * len(some))), write, read)


def codec(name: str, columns: list[pa.ListArray]) -> tuple[Subject, dict[str, Any], tz.Codebook]:
    tz.train(columns[0].slice(0, 100), codec=name)  # compiles
    start = time.perf_counter()
    codebook = tz.train(columns[:-1], codec=name)
    took = time.perf_counter() - start
    last = columns[-1]
    blobs = tz.encode(last, codebook)
    assert tz.decode(blobs, codebook).equals(last)
    whole = tz.train(columns, codec=name)
    size = sum(blob_bytes(tz.encode(c, whole)) for c in columns) + len(whole.to_bytes())
    tokens = sum(len(c.flatten()) for c in columns)
    facts = {"train_seconds": took, "codebook_bytes": len(codebook.to_bytes()), "C_bits": 8 * size / tokens}
    subject = Subject(name, blob_bytes(blobs), lambda: tz.encode(last, codebook), lambda: tz.decode(blobs, codebook))
    return subject, facts, codebook


def take_turns(subjects: list[Subject], rounds: int) -> dict[tuple[str, str], float]:
    """Median seconds by (subject, what)."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for s in subjects:
            for what, run in (("encode", s.encode), ("decode", s.decode)):
                if run:
                    start = time.perf_counter()
                    run()
                    seconds.setdefault((s.name, what), []).append(time.perf_counter() - start)
    return {k: statistics.median(v) for k, v in seconds.items()}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for row in rows:
        if row.get("decode_M_tokens_s"):
            ours = row["name"] in tz.codecs() or row["name"].endswith("in a file")
            axes.scatter(row["U_bits"], row["decode_M_tokens_s"], color="tab:blue" if ours else "tab:gray")
            axes.annotate(
                row["name"], (row["U_bits"], row["decode_M_tokens_s"]), xytext=(4, 4), textcoords="offset points"
            )
    axes.set(xlabel="bits a token (U)", ylabel="decode, M tokens/s, one thread", yscale="log")
    axes.set_title("smaller to the left, faster to the top")
    figure.savefig(path, dpi=120)


def more_facts(columns: list[pa.ListArray], codebooks: dict[str, tz.Codebook], rounds: int) -> Iterator[dict[str, Any]]:
    whole = pa.concat_arrays(columns)
    tokens = len(whole.flatten())
    for subject in (file(whole, tz.train(whole)), ipc(whole), parquet(whole, "Parquet zstd-3", "zstd", 3)):
        yield {"fact": f"one file of all rows, {subject.name}: bits a token", "value": 8 * subject.size / tokens}
    ids = whole.flatten().to_numpy().astype(np.uint16).tobytes()
    size = len(lzma.compress(ids, preset=9 | lzma.PRESET_EXTREME))
    yield {"fact": "xz -9e of all ids as one stream: bits a token", "value": 8 * size / tokens}
    names = ("huffman", "huffman-o1", "arithmetic", "context")
    some = {name: codebooks[name] for name in names}
    yield from codec_facts.padded_rows(columns)
    yield from codec_facts.single_rows(columns[-1], some)
    yield from codec_facts.two_threads(columns[-1], some, rounds)
    yield from codec_facts.starts(tz.codecs())
    yield from codec_facts.vocabularies(columns, names)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    pa.set_cpu_count(1)
    columns = token_columns(args.input)
    last = columns[-1]
    n = len(last.flatten())
    counts = np.bincount(np.concatenate([c.flatten().to_numpy() for c in columns]))
    shares = counts[counts > 0] / counts.sum()
    print(f"{counts.sum():,} tokens; order-0 entropy {-(shares * np.log2(shares)).sum():.4f}; last shard {n:,} tokens")
    subjects, facts, codebooks = [parquet(last, "Parquet zstd-3", "zstd", 3)], {}, {}
    for name in tz.codecs():
        subject, facts[name], codebooks[name] = codec(name, columns)
        subjects.append(subject)
        if name == "huffman":
            subjects.append(file(last, codebooks[name]))
    subjects += [
        parquet(last, "Parquet snappy", "snappy", None),
        parquet(last, "Parquet zstd-19", "zstd", 19),
        parquet(last, "Parquet brotli-11", "brotli", 11),
        ipc(last),
    ]
    slow = {"Parquet zstd-19", "Parquet brotli-11"}
    for s in subjects:
        s.encode = None if s.name in slow else s.encode  # seconds each; their point is their size
    peer = constriction_huffman(last)
    seconds = take_turns([*subjects, peer], args.rounds)
    stream = last.flatten().to_numpy().astype(np.uint16).tobytes()
    streams = [
        Subject("xz -9e of the ids", len(lzma.compress(stream, preset=9 | lzma.PRESET_EXTREME))),
        Subject("zstandard-19 of the ids", len(zstandard.compress(stream, 19))),
    ]
    rows = []
    for s in [*subjects, peer, *streams]:
        row: dict[str, Any] = {"name": s.name, "U_bits": 8 * s.size / n, **facts.get(s.name, {})}
        for what in ("encode", "decode"):
            if (s.name, what) in seconds:
                tokens = 200_000 if s is peer else n
                row[f"{what}_M_tokens_s"] = tokens / seconds[s.name, what] / 1e6
                row[f"{what}_ratio"] = row[f"{what}_M_tokens_s"] * seconds["Parquet zstd-3", what] * 1e6 / n
        rows.append(row)
    print(f"{'':24}{'U bits':>8}{'C bits':>8}{'codebook':>10}{'train s':>8}{'encode x':>9}{'decode x':>9}{'M/s':>8}")
    for row in rows:
        cells = [(row.get("U_bits"), 8, ".3f"), (row.get("C_bits"), 8, ".3f"), (row.get("codebook_bytes"), 10, ",")]
        cells += [(row.get("train_seconds"), 8, ".2f"), (row.get("encode_ratio"), 9, ".2f")]
        cells += [(row.get("decode_ratio"), 9, ".2f"), (row.get("decode_M_tokens_s"), 8, ".1f")]
        print(f"{row['name']:24}" + "".join(f"{v:{w}{f}}" if v is not None else " " * w for v, w, f in cells))
    facts_seen = []
    for fact in more_facts(columns, codebooks, args.rounds):
        facts_seen.append(fact)
        print(f"{fact['fact']} {fact['value']:,.3f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "codecs.json").write_text(json.dumps({"codecs": rows, "facts": facts_seen}, indent=1))
    plot(rows, args.out / "codecs.png")
    print(f"written: {args.out / 'codecs.json'}, {args.out / 'codecs.png'}")


if __name__ == "__main__":
    main()
