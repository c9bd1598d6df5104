"""`tokzip verify`: tokenizes the input again with `tokenizers` itself, and compares every row. Imports the backbone.

The check shares no tokenizing engine and no path through Beam with what it checks: it goes by the manifest, reads
each shard and its output file side by side, and accounts for every row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import tokzip_core as tz
from pipelines import job, options, reading, splits, storage
from pipelines.compress_stage import valid_text
from pipelines.manifest import Entry, Manifest, tokens_of
from pipelines.options import Invocation, Parser
from pipelines.report import read_json, show
from pipelines.splits import Split
from pipelines.stage import ERROR, ROW, Stats
from pipelines.storage import FileInfo, InputError
from pipelines.tokenizing import Tokenizer
from tokzip_core.errors import TokzipError


def parser(prog: str = "tokzip verify") -> Parser:
    p = Parser(prog=prog, description="Compare every row of a token data set with its input, tokenized again.")
    p.add_argument("output", help="folder or URL of the token data set, or the output of tokzip run")
    options.add_input(p)
    return p


def run(invocation: Invocation) -> dict[str, Any]:
    args = invocation.args
    output = tokens_of(storage.absolute(args.output))
    home = Manifest(output)
    settings = read_json(home.place("dataset.json"))
    if settings.get("stage") != "compress":
        raise InputError(f"{output}: not a token data set of tokzip")
    tokenizer = Tokenizer(storage.read_bytes(home.place("tokenizer.json")).decode(), "huggingface")
    if tokenizer.fingerprint != settings["tokenizer"]:
        raise InputError(f"{output}: its tokenizer.json is not the one it was made with")
    shards = {f.url: f for _, f in splits.find_shards(args.input)}
    entries = home.entries()
    problems = _strangers(home, entries)
    counts = {"rows_in": 0, "rows_equal": 0, "rows_dead": 0, "rows_differ": 0, "bad_shards": 0}
    for url, shard in shards.items():
        made = [e for e in entries if e.source["url"] == url]
        problems += _coverage(shard, made)
        for entry in made:
            try:
                problems += _verify_split(home, entry, tokenizer, settings["text_column"], counts)
                problems += _files(home, entry)
            except (TokzipError, pa.ArrowException, OSError) as e:
                problems.append(f"{url}: {entry.name}: {e}")
    summary = {"output": output, "shards": len(shards), **counts, "problems": len(problems)}
    print(show(summary, "tokzip verify"))
    if problems or counts["rows_in"] != counts["rows_equal"] + counts["rows_dead"]:
        raise InputError("; ".join(problems[:5]) or f"rows do not add up: {counts}")
    print(f"every row is equal: {counts['rows_equal']:,} rows, and {counts['rows_dead']:,} dead letters accounted for")
    if counts["bad_shards"]:
        print(f"not compared, since they were unreadable: {counts['bad_shards']:,} shards")
    return {}


def _strangers(home: Manifest, entries: list[Entry]) -> list[str]:
    """Files among the data that no entry knows: whoever reads the folder would take their rows for data."""
    known = {storage.join(home.output, e.output["path"]) for e in entries if e.output}
    found = storage.find(home.output, (".parquet",))[1] if storage.list_files(home.output, ".parquet") else []
    return [f"{f.url}: not in the manifest" for f in found if f.url not in known]


def _coverage(shard: FileInfo, made: list[Entry]) -> list[str]:
    """What is wrong with the splits that a shard was made into, as a whole."""
    sources = [e.source for e in made]
    if not sources:
        return [f"{shard.url}: never compressed"]
    if any((s["size"], s["version"]) != (shard.size, shard.version) for s in sources):
        return [f"{shard.url}: has changed since it was compressed"]
    if sorted(s["index"] for s in sources) != list(range(sources[0]["count"])):
        return [f"{shard.url}: {len(sources)} of its {sources[0]['count']} splits are there"]
    return []


def _files(home: Manifest, entry: Entry) -> list[str]:
    """Which files of the entry are not those that it was written for."""
    problems = []
    for described in filter(None, (entry.output, entry.dead_letters)):
        with storage.open_read(storage.join(home.output, described["path"])) as f:
            if hashlib.file_digest(f, "sha256").hexdigest() != described["sha256"]:  # type: ignore[arg-type]
                problems.append(f"{described['path']}: its SHA-256 is not that of the manifest")
    return problems


def _verify_split(home: Manifest, entry: Entry, tokenizer: Tokenizer, column: str, counts: dict[str, int]) -> list[str]:
    """Count the split's rows into `counts`; what is wrong with it, in words."""
    if entry.counts.get("bad_shards"):
        counts["bad_shards"] += 1
        return []
    url = entry.source["url"]
    dead: dict[int, str] = {}
    if entry.dead_letters:
        with storage.open_read(storage.join(home.output, entry.dead_letters["path"])) as f:
            letters = pq.read_table(f)
        dead = dict(zip(letters["row"].to_pylist(), letters["reason"].to_pylist(), strict=True))
    assert entry.output is not None
    stored = _rows(storage.join(home.output, entry.output["path"]))
    problems: list[str] = []
    split = Split.from_fingerprint(entry.source, entry.name)
    with reading.open_shard(url) as reader:
        for block in splits.blocks(split, reader, [column], Stats()):
            texts, errors = valid_text(block.column(column), block.column(ERROR))
            expected = tokenizer.encode(texts)
            for row, ids, error in zip(block.column(ROW).to_pylist(), expected, errors.to_pylist(), strict=True):
                counts["rows_in"] += 1
                if (error is not None) != (row in dead):
                    problems.append(f"{url} row {row}: {error or 'good'}, yet {dead.get(row, 'not a dead letter')}")
                elif error is not None:
                    counts["rows_dead"] += 1
                elif next(stored, None) == (ids, len(ids)):
                    counts["rows_equal"] += 1
                else:
                    counts["rows_differ"] += 1
                    problems.append(f"{url} row {row}: the stored tokens differ")
    if next(stored, None) is not None:
        problems.append(f"{entry.output['path']}: has more rows than its shard")
    return problems


def _rows(url: str) -> Iterator[tuple[pa.ListScalar, int]]:
    table = tz.read_table(url, columns=["tokens", "n_tokens"])
    yield from zip(table["tokens"], table["n_tokens"].to_pylist(), strict=True)


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
