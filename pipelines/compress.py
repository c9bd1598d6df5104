"""Stage 1's command, `tokzip compress`: text shards to a token data set. Imports job, watch, train, compress_stage."""

from __future__ import annotations

import hashlib
import math
import time
import uuid
from typing import Any

import apache_beam as beam

import tokzip_core as tz
from pipelines import advise, drift, job, logs, options, report, splits, storage, watch
from pipelines.compress_stage import CompressStage
from pipelines.manifest import DatasetMismatchError, Manifest
from pipelines.map_splits import MapSplits
from pipelines.options import Invocation, Parser, UsageError
from pipelines.splits import Split
from pipelines.stage import ERROR, ROW
from pipelines.tokenizing import ENGINES, Tokenizer, load_tokenizer
from pipelines.train import TrainCodebook, share_of
from pipelines.transient import retry
from tokzip_core import checksum

TRAIN_BYTES = 48_000_000


def parser(prog: str = "tokzip compress") -> Parser:
    p = Parser(prog=prog, description="Tokenize text shards and store the token ids compressed, as Parquet.")
    options.add_input(p)
    p.add_argument("--output", required=True, help="folder or URL of the token data set")
    add_arguments(p)
    options.add_job_options(p)
    return p


def add_arguments(p: Any) -> None:
    """The options of stage 1 alone."""
    g = p.add_argument_group("compress")
    g.add_argument("--text-column", default="text", help="the column to tokenize (default text)")
    g.add_argument("--carry", type=options.names, default=[], metavar="A,B", help="columns to keep beside the tokens")
    g.add_argument(
        "--tokenizer",
        default="bert-base-uncased",
        help="folder, or name on the hub (default bert-base-uncased)",
    )
    g.add_argument(
        "--tokenizer-engine",
        choices=ENGINES,
        default="auto",
        help="default auto: a fast one where it is right",
    )
    g.add_argument(
        "--codec",
        choices=[*tz.codecs(), "auto"],
        help="default huffman; auto measures all on a sample once, and keeps what it chose",
    )
    g.add_argument("--prefer", choices=tz.PREFERENCES, help="what --codec auto chooses by (default balanced)")
    g.add_argument("--row-checksum", action="store_true", help="end every row in 2 bytes that find a flipped bit")
    g.add_argument("--codebook", help="path or URL of a trained codebook to use instead of training one")
    g.add_argument(
        "--train-bytes",
        type=options.size,
        default=TRAIN_BYTES,
        metavar="SIZE",
        help="text to train on (default 48MB)",
    )
    g.add_argument(
        "--split-bytes",
        type=options.size,
        default=32_000_000,
        metavar="SIZE",
        help="text in a split (default 32MB)",
    )
    g.add_argument(
        "--drift-threshold",
        type=options.percent,
        default=0.03,
        metavar="PERCENT",
        help="say so where retraining would save more of the bytes of this run's rows (default 3%%)",
    )


@job.on_output
def run(invocation: Invocation) -> dict[str, Any]:
    """Compress, print the summary and return it."""
    args, started = invocation.args, time.time()
    output = storage.absolute(args.output)
    skip_bad = args.watch or args.on_bad_shard == "skip"
    reserved = {"tokens", "n_tokens", ROW, ERROR} & set(args.carry)
    if reserved:
        raise UsageError(f"--carry {','.join(sorted(reserved))}: that name is taken by an output column")
    if args.prefer and args.codec != "auto":
        raise UsageError("--prefer is for --codec auto")
    stage = CompressStage(
        output, args.text_column, tuple(args.carry), args.tokenizer_engine, uuid.uuid4().hex, args.row_checksum
    )
    home = Manifest(output)
    if args.watch:
        watcher = watch.Watcher(invocation, output, lambda: job.find(args.input, output))
        tokenizer_json = load_tokenizer(args.tokenizer)  # what is wrong with it is said before the wait
        known = watcher.manifest.planned(args.split_bytes)
        planned = watcher.first(lambda s: splits.plan([s], stage.columns, args.split_bytes, skip_bad, known))
        if planned is None:
            return report.unchanged(home)
    else:
        planned = job.plan(args.input, home, stage.columns, args.split_bytes, skip_bad)
        tokenizer_json = load_tokenizer(args.tokenizer)
    given = retry(tz.load_codebook, args.codebook) if args.codebook else None
    if given and args.codec not in (None, given.codec):
        raise UsageError(f"--codec {args.codec}, but the codebook of --codebook is of codec {given.codec}")
    settings = {
        "stage": stage.name,
        "tokenizer": Tokenizer(tokenizer_json, "huggingface").fingerprint,
        "text_column": args.text_column,
        "carry": ",".join(args.carry),
        "codec": given.codec if given else args.codec or "huffman",
        **({"row_checksum": checksum.NAME} if args.row_checksum else {}),
    }
    why = advice = None
    if settings["codec"] == "auto":
        tokenizer = Tokenizer(tokenizer_json, args.tokenizer_engine)
        settings["codec"], why, advice = advise.choose(
            home,
            settings,
            args.prefer or "balanced",
            lambda: advise.text_tokens(planned, tokenizer, args.text_column, skip_bad),
        )
    home.claim(settings, ["codebook.tzc", "training.json", "advice.json"])
    if advice:
        storage.publish_json(advice, output, home.place("advice.json"))
    storage.publish_bytes(tokenizer_json.encode(), output, home.place("tokenizer.json"))
    _place_codebook(home, given)
    _keep_codebook(home)

    trained = not storage.exists(home.place("codebook.tzc"))

    def train(pipeline: beam.Pipeline) -> Any:
        sample = splits.sample(planned, args.train_bytes)
        training = TrainCodebook(stage, settings["codec"], share_of(sample, args.train_bytes), skip_bad)
        return pipeline | "Sample" >> beam.Create(sample) | "Train codebook" >> training

    def build(pipeline: beam.Pipeline, todo: list[Split], most_dead: float) -> Any:
        ready = train(pipeline) if trained else None
        transform = MapSplits(stage, output, skip_bad, ready, most_dead)
        return pipeline | "Splits" >> beam.Create(todo) | "Compress" >> transform

    if args.watch:
        if trained:
            watcher.execute(f"{output}: the training", train)
        planned, entries, made, gone = watcher.run(stage)
    else:
        _, entries, made, gone = job.run(invocation, home, planned, build)
    summary = _summary(home, report.summarize(home, planned, entries, made, gone, started))
    summary["codec"] = settings["codec"]
    if why:
        summary["codec_why"] = why
    # A watch that was told to stop has no time to retrain: whether that would pay, a batch run says.
    threshold = math.inf if args.watch else args.drift_threshold
    first = trained and not args.watch
    looked = {} if first else drift.look(home, planned, entries, made, args.train_bytes, threshold)
    # A run without new rows tells of those of the last that had some.
    if found := looked or report.read_json(home.place("summary.json")).get("drift"):
        summary["drift"] = found
    summary["tokenizer_engine"] = report.notes(entries, "tokenizer_engine")
    report.publish(summary, home, "tokzip compress")
    if notice := summary.get("drift", {}).get("notice"):
        logs.note(notice)
    return summary


def _summary(home: Manifest, summary: dict[str, Any]) -> dict[str, Any]:
    """The common summary with what stage 1 is about: sizes, against plain integers and against entropy."""
    tokens, blob_bytes = summary.get("tokens", 0), summary.get("blob_bytes", 0)
    trained = report.read_json(home.place("training.json"))
    summary["bits_per_token"] = report.ratio(8 * blob_bytes, tokens)
    summary["expected_bits_per_token"] = report.ratio(8 * summary.get("expected_blob_bytes", 0), tokens)
    summary["ratio_to_int64"] = report.ratio(8 * tokens, blob_bytes)
    summary["ratio_to_uint16"] = report.ratio(2 * tokens, blob_bytes)
    if trained:
        summary["trained_on_tokens"] = trained["tokens"]
        summary["order0_entropy_bits"] = round(trained["entropy_bits"], 4)
        summary["bits_to_entropy"] = report.ratio(summary["bits_per_token"] or 0, trained["entropy_bits"])
    return summary


def _place_codebook(home: Manifest, given: tz.Codebook | None) -> None:
    """Put the codebook that the user named into the data set; raise where the data set has another."""
    url = home.place("codebook.tzc")
    if given and storage.exists(url) and (there := retry(tz.load_codebook, url)).id != given.id:
        raise DatasetMismatchError(f"{home.output} has codebook {there.id}, and is now asked for {given.id}")
    if given:
        storage.publish_bytes(given.to_bytes(), home.output, url)


def _keep_codebook(home: Manifest) -> None:
    """Put a codebook that got lost back, from a file that needs it; raise where another has taken its place."""
    url = home.place("codebook.tzc")
    made = next((e for e in home.entries() if e.output and e.source["version"]), None)
    if not made:
        return
    if not storage.exists(url):
        codebook = retry(tz.file_codebook, storage.join(home.output, made.output["path"]))
        storage.publish_bytes(codebook.to_bytes(), home.output, url)
    # A codebook's id is the digest of its bytes: to compare it, a run with nothing to do needs no tables, nor kernels.
    elif hashlib.sha256(storage.read_bytes(url)).hexdigest() != (needed := made.identity["codebook"]):
        there = retry(tz.load_codebook, url).id  # which says so where it is damaged
        raise DatasetMismatchError(f"{url} is codebook {there}, and the files of {home.output} need {needed}")


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
