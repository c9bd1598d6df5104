"""Stage 2's command, `tokzip embed`: a token data set to an embedding data set. Imports job, watch, embed_stage."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import apache_beam as beam
import pyarrow as pa

import tokzip_core as tz
from pipelines import job, options, reading, report, splits, storage, watch
from pipelines.embed_stage import EmbedStage, same_vocabulary
from pipelines.inference import ModelError, check_model
from pipelines.inference import rows as ragged
from pipelines.inference.model import LEAST_COSINE, PRECISIONS
from pipelines.inference.output import OUTPUT_TYPES, Output
from pipelines.manifest import Entry, Manifest, tokens_of
from pipelines.map_splits import MapSplits
from pipelines.options import Invocation, Parser
from pipelines.splits import Split
from pipelines.storage import InputError
from pipelines.transient import retry
from tokzip_core.cache import CODINGS, parse_cache_spec

# The matrix products alone are measured at the end of a job that was so long in the model (seconds).
_SECONDS_WORTH_MEASURING = 30


def parser(prog: str = "tokzip embed") -> Parser:
    p = Parser(prog=prog, description="Run a transformer over a token data set and store the embeddings, as Parquet.")
    p.add_argument(
        "--input", required=True, help="folder, glob or URL of token files (the output of tokzip compress or run)"
    )
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
        type=options.positive,
        metavar="N",
        help="tokens a row with special tokens (default: the model's own)",
    )
    g.add_argument("--long-rows", choices=("truncate", "window"), default="truncate", help="default truncate")
    g.add_argument(
        "--cache",
        type=_cache_layers,
        metavar="LAYERS",
        help="layers, looked up in this order: memory:SIZE, disk:PATH:SIZE, redis://HOST:PORT/DB, folder:PATH or URL "
        "of any store; or none (default: memory:256MB and, on a local runner, disk:~/.cache/tokzip:20GB)",
    )
    g.add_argument(
        "--cache-values",
        choices=CODINGS,
        default="lossless",
        help="how the cache stores vectors; fp16 and int8 are a half and a quarter of the size, and what is written "
        "is rounded as the cache rounds it (default lossless)",
    )
    g.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="auto",
        help=f"auto: bf16 where the processor has it and a sample of the rows keeps a cosine of {LEAST_COSINE} to "
        "fp32, else fp32; a data set keeps what it was begun with (default auto)",
    )
    g.add_argument("--output-type", choices=OUTPUT_TYPES, default="float32", help="default float32")
    g.add_argument(
        "--dimensions", type=options.positive, metavar="N", help="leading dimensions to keep, normalised anew"
    )
    g.add_argument(
        "--batch-tokens",
        type=options.positive,
        metavar="N",
        help="tokens in a batch of the model (default 2048, on a GPU 16384)",
    )


def _cache_layers(text: str) -> str:
    try:
        parse_cache_spec(text)
    except tz.TokzipError as e:
        raise argparse.ArgumentTypeError(str(e)) from None
    return text


def default_cache(invocation: Invocation) -> str:
    """On a local runner the embeddings outlive the run; what disk a cluster's worker has is not ours to fill."""
    if not options.is_local_runner(invocation.beam):
        return "memory:256MB"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, "tokzip")
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written to")
    except OSError as error:  # nobody asked for it
        print(f"tokzip embed: no cache on disk, only in memory: {error}", file=sys.stderr)
        return "memory:256MB"
    return f"memory:256MB,disk:{folder}:20GB"


def _model_options(args: Any) -> dict[str, Any]:
    names = ("pooling", "normalize", "max_length", "long_rows", "batch_tokens", "precision")
    return {name: getattr(args, name) for name in names}


def check(args: Any, vocabulary: str | None) -> None:
    """Raise, before any work, where the model cannot be used as asked on tokens of this vocabulary (its digest)."""
    settings, dimension = check_model(
        args.model,
        **_model_options(args),
    )
    Output(dimension, args.dimensions, args.output_type)
    if settings.vocabulary is None:
        raise ModelError(
            f"model {args.model}: has no tokenizer, which would say what special tokens a row is put between"
        )
    same_vocabulary(args.model, settings.vocabulary, vocabulary)


@job.on_output
def run(invocation: Invocation) -> dict[str, Any]:
    """Embed, print the summary and return it."""
    args, started = invocation.args, time.time()
    args.input = tokens_of(args.input)
    output = storage.absolute(args.output)
    skip_bad = args.watch or args.on_bad_shard == "skip"
    home = Manifest(output)
    if args.watch:
        watcher = watch.Watcher(invocation, output, lambda: job.find([args.input], output), _is_committed)
        check(args, None)  # what is wrong with the model is said before the wait
        found = watcher.until(lambda shards: _token_data_set(args.input, filter(_is_committed, shards)))
    else:
        _refuse_losses(Manifest(args.input))
        found = _token_data_set(args.input)
    if found is None:
        return report.unchanged(home)
    codebook, vocabulary = found
    check(args, vocabulary)
    stage = EmbedStage(
        model=args.model,
        codebook=home.place("codebook.tzc"),
        vocabulary=vocabulary,
        cache=args.cache or default_cache(invocation),
        cache_values=args.cache_values,
        **_model_options(args),
        output_type=args.output_type,
        dimensions=args.dimensions,
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
    if args.watch:
        known = watcher.manifest.planned(sys.maxsize)
        planned = watcher.first(lambda s: splits.plan([s], columns, sys.maxsize, skip_bad, known))
    else:
        planned = job.plan([args.input], home, columns, sys.maxsize, skip_bad)
    if planned is None:
        return report.unchanged(home)
    storage.publish_bytes(codebook.to_bytes(), output, home.place("codebook.tzc"))
    stage, lowest = _settle(stage, home, planned, codebook)

    def build(pipeline: beam.Pipeline, todo: list[Split], most_dead: float) -> Any:
        transform = MapSplits(stage, output, skip_bad, most_dead=most_dead)
        return pipeline | "Splits" >> beam.Create(todo) | "Embed" >> transform

    with contextlib.closing(stage):
        home.claim({"stage": stage.name, **stage.open().identity}, [])
        began = time.time()
        done = watcher.run(stage) if args.watch else job.run(invocation, home, planned, build)
        planned, entries, made, gone = done
        took = time.time() - began
        speed = _speed(stage, made, invocation)
    summary = report.summarize(home, planned, entries, made, gone, started)
    if not args.watch:  # which waits most of the time
        summary["seconds"]["beam"] = round(max(0.0, took - summary["seconds"]["workers"] / args.workers), 3)
    for name in ("batches", "linear", "exact"):
        summary[name] = report.notes(entries, name)
    if expected := report.notes(entries, "texts_expected"):
        summary["texts_expected"] = expected
    summary |= _cache(stage, summary)
    summary |= {"precision": stage.precision, "lowest_cosine": lowest}
    summary |= speed
    report.publish(summary, home, "tokzip embed")
    return summary


def _settle(
    stage: EmbedStage, home: Manifest, planned: list[Split], codebook: tz.Codebook
) -> tuple[EmbedStage, float | None]:
    """The stage with its precision, `auto` settled once for all workers; and the lowest cosine to fp32, if known.

    A data set that has splits keeps the precision of theirs.
    """
    begun = report.read_json(home.place("dataset.json")).get("compute_dtype") if home.names() else None
    if begun and stage.precision in ("auto", begun):
        stage, _ = replace(stage, precision=begun).settled(None)
        return stage, report.read_json(home.place("summary.json")).get("lowest_cosine")
    calibration = _first_rows(planned, stage.column, codebook) if stage.precision == "auto" else None
    stage, model = stage.settled(calibration)
    return stage, model.cosine


def _first_rows(planned: list[Split], column: str, codebook: tz.Codebook, most: int = 512) -> ragged.Rows | None:
    """Rows of ids from the first block that has some; None where there is none."""
    for split in (s for s in planned if not s.problem):
        # What cannot be read is the job's to tell of.
        with contextlib.suppress(InputError), reading.open_shard(split.url) as reader, reading.input_errors(split.url):
            for block in reader.blocks([column], None, 0):
                with contextlib.suppress(tz.CorruptBlobError):
                    return ragged.from_arrow(tz.decode(block.column(column).drop_null()[:most], codebook))
    return None


def _speed(stage: EmbedStage, done_now: list[Entry], invocation: Invocation) -> dict[str, Any]:
    """Tokens a second of the model, and the share of them that bare matrix products allow, where it can be told.

    That takes some tenths of a second, on the machine that did the work: left out where it would be above 1 % of it.
    """
    seconds = sum(e.seconds.get("model", 0.0) for e in done_now)
    tokens = sum(e.counts.get("tokens_computed", 0) for e in done_now)
    if not tokens or not seconds:
        return {}
    speed: dict[str, Any] = {"model_tokens_per_second": round(tokens / seconds)}
    if (
        seconds >= _SECONDS_WORTH_MEASURING
        and options.is_local_runner(invocation.beam)
        and invocation.args.workers == 1
    ):
        bare = stage.open().model.matrix_product_seconds()
        speed["matrix_product_share"] = report.ratio(bare * tokens, seconds)
    return speed


def _cache(stage: EmbedStage, summary: dict[str, Any]) -> dict[str, Any]:
    """The cache, without passwords, and what its values cost; of lossy ones also how near they are, on samples."""
    count = {
        name: summary.pop(name, 0)
        for name in (
            "cache_values",
            "cache_value_bytes",
            "cache_sampled",
            "cache_cosine",
            "cache_neighbours",
            "cache_neighbours_kept",
        )
    }
    told = {"cache": str(parse_cache_spec(stage.cache)), "cache_values": stage.cache_values}
    if count["cache_values"]:
        told["cache_bytes_per_value"] = report.ratio(count["cache_value_bytes"], count["cache_values"])
    if count["cache_sampled"]:
        told["cache_cosine"] = round(count["cache_cosine"] / count["cache_sampled"], 6)  # 0.99996 is not 1
        told["cache_recall_at_10"] = report.ratio(count["cache_neighbours_kept"], count["cache_neighbours"])
    return told


def _is_committed(shard: tuple[str, storage.FileInfo]) -> bool:
    """Whether a file is what the manifest of its data set says, the nearest that it lies in; or lies in none of ours.

    The input may be a folder in a data set, or have several below it.
    """
    _, file = shard
    for home, name in _homes(file.url):
        with contextlib.suppress(PermissionError, ValueError):  # above what may be read, or what is a folder at all
            if entry := home.get(name):
                return bool(entry.source["version"]) and entry.output is not None and entry.output["bytes"] == file.size
            if storage.exists(home.place("dataset.json")):
                return False
    return True


def _refuse_losses(tokens: Manifest) -> None:
    """A token file that is gone while its data set has it committed was lost, not retired."""
    if storage.exists(tokens.place("dataset.json")) and (lost := tokens.lost()):
        raise InputError(
            f"{storage.join(tokens.output, lost[0].name)} is no longer there, though its data set has it committed "
            f"({len(lost)} such files): the command that made them makes them again"
        )


def _homes(url: str) -> Iterator[tuple[Manifest, str]]:
    """What may be the data set of a file, from its own folder upward, and the file's name there."""
    root, _, path = url.rpartition("://")
    parts = path.split("/")
    for i in range(len(parts) - 1, 0, -1):
        folder = "/".join(parts[:i])
        yield Manifest(f"{root}://{folder}" if root else folder), "/".join(parts[i:])


def _token_data_set(
    pattern: str, shards: Iterable[tuple[str, storage.FileInfo]] | None = None
) -> tuple[tz.Codebook, str | None]:
    """The codebook and the vocabulary's digest of a token data set, by its first readable file."""
    problem = InputError(f"no file matches {pattern}")
    for _, file in splits.find_shards([pattern]) if shards is None else shards:
        try:
            with reading.open_shard(file.url) as reader:
                return retry(tz.file_codebook, file.url), _vocabulary(reader.schema)
        except (tz.TokzipError, LookupError, FileNotFoundError, pa.ArrowInvalid) as e:
            problem = problem if isinstance(problem, tz.UnknownCodebookError) else InputError(str(e))
    raise problem


def _vocabulary(schema: pa.Schema) -> str | None:
    described = (schema.metadata or {}).get(b"tokzip.tokenizer")
    return json.loads(described).get("vocabulary") if described else None


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
