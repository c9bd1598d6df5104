"""Stage 2's command, `tokzip embed`: a token data set to an embedding data set. Imports job and embed_stage."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import apache_beam as beam
import pyarrow as pa

import tokzip_core as tz
from pipelines import job, options, reading, report, splits, storage
from pipelines.embed_stage import EmbedStage, same_vocabulary
from pipelines.inference import ModelError, check_model
from pipelines.manifest import Manifest
from pipelines.map_splits import MapSplits
from pipelines.options import Invocation, Parser
from pipelines.splits import Split
from pipelines.storage import InputError
from tokzip_core.cache import parse_cache_spec


def parser(prog: str = "tokzip embed") -> Parser:
    p = Parser(prog=prog, description="Run a transformer over a token data set and store the embeddings, as Parquet.")
    p.add_argument("--input", required=True, help="folder, glob or URL of token files (the output of tokzip compress)")
    p.add_argument("--output", required=True, help="folder or URL of the embedding data set")
    p.add_argument(
        "--carry", type=options.names, default=[], metavar="A,B", help="columns to keep beside the embeddings"
    )
    add_arguments(p)
    options.add_job_options(p)
    return p


def add_arguments(p: Any) -> None:
    """The options of stage 2 alone."""
    g = p.add_argument_group("embed")
    g.add_argument("--model", required=True, help="folder, or name on the hub, of a transformer encoder")
    g.add_argument("--pooling", choices=("auto", "mean", "cls"), default="auto", help="default auto: the model's own")
    g.add_argument("--normalize", choices=("auto", "on", "off"), default="auto", help="default auto: the model's own")
    g.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens a row with special tokens (default: the model's own)",
    )
    g.add_argument("--long-rows", choices=("truncate", "window"), default="truncate", help="default truncate")
    g.add_argument(
        "--cache",
        metavar="LAYERS",
        help='such as "memory:256MB,disk:PATH:20GB", or none (default: memory:256MB and, on a local runner, '
        "disk:~/.cache/tokzip:20GB)",
    )
    g.add_argument(
        "--batch-tokens",
        type=int,
        default=2048,
        metavar="N",
        help="tokens in a batch of the model (default 2048)",
    )


def default_cache(invocation: Invocation) -> str:
    """On a local runner the embeddings outlive the run; what disk a cluster's worker has is not ours to fill."""
    if not options.is_local_runner(invocation.beam):
        return "memory:256MB"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return f"memory:256MB,disk:{os.path.join(home, 'tokzip')}:20GB"


def check(args: Any, vocabulary: str | None) -> None:
    """Raise, before any work, where the model cannot be used as asked on tokens of this vocabulary (its digest)."""
    parse_cache_spec(args.cache or "none")
    own = check_model(
        args.model,
        pooling=args.pooling,
        normalize=args.normalize,
        max_length=args.max_length,
        long_rows=args.long_rows,
        batch_tokens=args.batch_tokens,
    ).vocabulary
    if own is None:
        raise ModelError(
            f"model {args.model}: has no tokenizer, which would say what special tokens a row is put between"
        )
    same_vocabulary(args.model, own, vocabulary)


def run(invocation: Invocation) -> dict[str, Any]:
    """Embed, print the summary and return it."""
    args, started = invocation.args, time.time()
    output = storage.absolute(args.output)
    skip_bad = args.on_bad_shard == "skip"
    home = Manifest(output)
    codebook, vocabulary = _token_data_set(args.input)
    check(args, vocabulary)
    stage = EmbedStage(
        model=args.model,
        codebook=home.place("codebook.tzc"),
        vocabulary=vocabulary,
        cache=args.cache or default_cache(invocation),
        pooling=args.pooling,
        normalize=args.normalize,
        max_length=args.max_length,
        long_rows=args.long_rows,
        batch_tokens=args.batch_tokens,
        carry=tuple(args.carry),
    )

    def columns(schema: pa.Schema) -> list[str]:
        found = stage.columns(schema)
        if (other := schema.field(stage.column).type.codebook_id) != codebook.id:
            raise InputError(f"its tokens need codebook {other}, those of other files {codebook.id}")
        if (other := _vocabulary(schema)) != vocabulary:
            raise InputError(f"its tokens are of vocabulary {other}, those of other files {vocabulary}")
        return found

    # One embedding file beside each token file: a token file is one split.
    planned = job.plan([args.input], output, columns, sys.maxsize, skip_bad)
    storage.publish_bytes(codebook.to_bytes(), output, home.place("codebook.tzc"))
    home.claim({"stage": stage.name, **stage.open().identity}, [])

    def build(pipeline: beam.Pipeline, todo: list[Split]) -> Any:
        return pipeline | "Splits" >> beam.Create(todo) | "Embed" >> MapSplits(stage, output, skip_bad)

    entries = job.run(invocation, output, planned, build)
    summary = report.summarize(home, planned, entries, started)
    for name in ("batches", "exact"):
        summary[name] = report.notes(entries, name)
    summary["cache"] = stage.cache
    report.publish(summary, home, "tokzip embed")
    return summary


def _token_data_set(pattern: str) -> tuple[tz.Codebook, str | None]:
    """The codebook and the vocabulary's digest of a token data set, by its first readable file."""
    problem = InputError(f"no file matches {pattern}")
    for _, file in splits.find_shards([pattern]):
        try:
            with reading.open_shard(file.url) as reader:
                return tz.file_codebook(file.url), _vocabulary(reader.schema)
        except (tz.TokzipError, LookupError) as e:
            problem = problem if isinstance(problem, tz.UnknownCodebookError) else InputError(str(e))
    raise problem


def _vocabulary(schema: pa.Schema) -> str | None:
    described = (schema.metadata or {}).get(b"tokzip.tokenizer")
    return json.loads(described).get("vocabulary") if described else None


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
