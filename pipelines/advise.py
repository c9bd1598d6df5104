"""`tokzip advise`, and `--codec auto`: every codec measured on a sample of the input. Imports train, tokzip_core."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa

import tokzip_core as tz
from pipelines import job, reading, splits, storage, train
from pipelines.compress_stage import CompressStage
from pipelines.manifest import Manifest, tokens_of
from pipelines.options import Invocation, Parser
from pipelines.report import read_json
from pipelines.splits import Split
from pipelines.stage import Stats
from pipelines.storage import InputError
from pipelines.tokenizing import ENGINES, Tokenizer, load_tokenizer
from tokzip_core.blob import naming
from tokzip_core.columns import token_column

_SAMPLE_BYTES = 20_000_000  # about tz.advise's sample, as text
_SAMPLE_SPLITS = 16
_SPLIT_BYTES = 32_000_000


def parser() -> Parser:
    p = Parser(prog="tokzip advise", description="Measure every codec on a sample of the input, and recommend one.")
    p.add_argument("input", nargs="+", help="text shards as tokzip compress takes them, or Parquet with token ids")
    p.add_argument("--column", help="text, lists of ids or blobs (default tokens where it holds ids, else text)")
    p.add_argument("--tokenizer", default="bert-base-uncased", help="for text (default bert-base-uncased)")
    p.add_argument("--tokenizer-engine", choices=ENGINES, default="auto", help="default auto")
    p.add_argument("--prefer", choices=tz.PREFERENCES, default="balanced", help="default balanced")
    p.add_argument("--out", default="tokzip-advice", help="folder for advice.json and .png (default tokzip-advice)")
    return p


def run(invocation: Invocation) -> dict[str, Any]:
    args = invocation.args
    tokens, corpus, next_step = _input(args)
    try:
        advice = tz.advise(tokens, args.prefer, corpus_tokens=corpus)
    except tz.InvalidTokensError as e:
        raise InputError(f"{' '.join(args.input)}: {e}") from e
    print(advice)
    print(f"\nnext: {next_step(advice.recommended)}\n")
    out = storage.absolute(args.out)
    storage.publish_json(asdict(advice), out, storage.join(out, "advice.json"))
    print(f"written: {storage.join(out, 'advice.json')}")
    with storage.scratch_file(out) as scratch:
        if _draw(advice, scratch):
            storage.publish(scratch, storage.join(out, "advice.png"))
            print(f"written: {storage.join(out, 'advice.png')}")
        else:
            print("no picture: it takes matplotlib (pip install matplotlib)")
    return {}


def choose(
    home: Manifest, settings: dict[str, str], prefer: str, sample: Callable[[], tuple[list[pa.Array], int]]
) -> tuple[str, str, dict[str, Any] | None]:
    """The codec that `auto` stands for, why, and the advice that is to be recorded once the folder is claimed.

    Speeds vary from run to run, so it is chosen once: a data set with rows keeps its codec; one without keeps what was
    recorded for the same settings and wish. A run that ends before the record chooses again, and `Manifest.claim`
    removes what it made with another codec.
    """
    there, recorded = read_json(home.place("dataset.json")), read_json(home.place("advice.json"))
    has_rows = bool(home.names())
    if has_rows and not recorded and "codec" in there:
        return there["codec"], "it is the data set's, and was not chosen by auto", None
    same = {**there, "codec": ""} == {**settings, "codec": ""}
    if recorded and (has_rows or (same and recorded["prefer"] == prefer)):
        return recorded["recommended"], f"chosen once, by an earlier run: {recorded['why']}", None
    tokens, corpus = sample()
    try:
        advice = tz.advise(tokens, prefer, corpus_tokens=corpus)
    except tz.InvalidTokensError as e:
        return "huffman", f"the default: there is nothing to measure ({e})", None
    return advice.recommended, advice.why, asdict(advice)


def text_tokens(planned: list[Split], tokenizer: Tokenizer, column: str, skip_bad: bool) -> tuple[list[pa.Array], int]:
    """The tokens of the beginnings of splits from all over the input, and about how many tokens all of it has."""
    return _sampled(planned, lambda split, share: train.sampled_rows(split, tokenizer, column, share, skip_bad))


def _sampled(planned: list[Split], rows_of: Callable[[Split, float], Iterator[pa.Array]]) -> tuple[list[pa.Array], int]:
    usable = [s for s in planned if not s.problem and s.bytes]
    step = max(1, math.ceil(len(usable) / _SAMPLE_SPLITS))
    chosen = usable[step // 2 :: step] or usable
    share = _SAMPLE_BYTES / max(1, len(chosen))
    tokens = [rows for s in chosen for rows in rows_of(s, min(1.0, share / s.bytes))]
    seen = sum(len(rows.flatten()) for rows in tokens)
    if all(s.rows >= 0 for s in usable):
        part, whole = float(sum(map(len, tokens))), sum(s.rows for s in usable)
    else:  # only reading would tell how many rows there are
        part, whole = sum(min(share, s.bytes) for s in chosen), sum(s.bytes for s in usable)
    return tokens, max(seen, round(seen * whole / max(1.0, part)))


def _input(args: Any) -> tuple[list[pa.Array], int, Callable[[str], str]]:
    """The tokens of a sample, about how many tokens there are, and what to do next with a codec, in words."""
    inputs = [tokens_of(url) for url in args.input]
    shards = splits.find_shards(inputs)
    with reading.open_shard(shards[0][1].url) as reader:
        schema = reader.schema
    column = args.column or ("tokens" if "tokens" in schema.names and _is_ids(schema.field("tokens").type) else "text")
    if column in schema.names and _is_ids(schema.field(column).type):
        planned = splits.plan(shards, lambda s: _id_column(s, column), _SPLIT_BYTES)
        tokens, corpus = _sampled(planned, lambda split, share: _ids(split, column, share))
        return tokens, corpus, lambda codec: f"blobs = tz.encode(tokens, tz.train(tokens, codec={codec!r}))"
    stage = CompressStage("", column, (), args.tokenizer_engine, "")
    planned = splits.plan(shards, stage.columns, _SPLIT_BYTES)
    tokenizer = Tokenizer(load_tokenizer(args.tokenizer), args.tokenizer_engine)
    tokens, corpus = text_tokens(planned, tokenizer, column, skip_bad=False)
    command = ["tokzip", "compress", "--input", *args.input, "--output", "OUTPUT", "--tokenizer", args.tokenizer]
    command += ["--text-column", column] if column != "text" else []
    return tokens, corpus, lambda codec: shlex.join([*command, "--codec", codec])


def _is_ids(kind: pa.DataType) -> bool:
    if isinstance(kind, tz.TokenBlobType):
        return True
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and pa.types.is_integer(kind.value_type)


def _id_column(schema: pa.Schema, column: str) -> list[str]:
    if column not in schema.names or not _is_ids(schema.field(column).type):
        kind = schema.field(column).type if column in schema.names else "missing"
        raise InputError(f"column {column!r} is {kind}, expected lists of ids or token blobs, as in the first shard")
    return [column]


def _ids(split: Split, column: str, share: float) -> Iterator[pa.Array]:
    """The ids of the first `share` of a split's rows."""
    left, row = math.ceil(split.rows * share), split.first_row
    codebook = None
    with reading.open_shard(split.url) as reader:
        for block in splits.blocks(split, reader, [column], Stats()):
            rows = block.column(column)[:left]
            with naming(range(row, row + len(rows)), f"{split.url}: "):
                if isinstance(rows.type, tz.TokenBlobType):
                    codebook = codebook or tz.file_codebook(split.url, column)
                    rows = tz.decode(rows, codebook)
                token_column(rows)  # raises where `tz.advise` would, but knows the shard
            yield rows
            left, row = left - len(rows), row + len(rows)
            if not left:
                return


def _draw(advice: tz.Advice, path: str) -> bool:
    """Size against decoding speed, every codec a point; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    frontier = [r for r in advice.rows if r.pareto]
    axes.plot([r.total_bits for r in frontier], [r.decode_rate / 1e6 for r in frontier], color="tab:blue", alpha=0.4)
    for row in [*advice.rows, advice.yardstick]:
        at = (row.total_bits, row.decode_rate / 1e6)
        color = "tab:gray" if row is advice.yardstick else "tab:red" if row.name == advice.recommended else "tab:blue"
        axes.scatter(*at, color=color)
        axes.annotate(row.name, at, xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="bits a token, codebook counted", ylabel="decode, M tokens/s, one thread", yscale="log")
    axes.set_title(f"{advice.recommended}, for {advice.prefer}: smaller to the left, faster to the top")
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
    return True


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
