"""Both stages, `tokzip run`: text shards to OUTPUT/tokens and OUTPUT/embeddings. Imports compress, embed and watch."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines import compress, embed, job, options, report, storage, watch
from pipelines.options import Invocation, Parser
from pipelines.tokenizing import Tokenizer, load_tokenizer


def parser(prog: str = "tokzip run") -> Parser:
    p = Parser(prog=prog, description="Text shards to token ids to embeddings.")
    options.add_input(p)
    p.add_argument("--output", required=True, help="folder or URL; gets tokens/, embeddings/ and summary.json")
    compress.add_arguments(p)
    embed.add_arguments(p)
    options.add_job_options(p)
    return p


@job.on_output
def run(invocation: Invocation) -> dict[str, Any]:
    args = vars(invocation.args)
    output = storage.absolute(args["output"])
    tokens, embeddings = storage.join(output, "tokens"), storage.join(output, "embeddings")
    stop = watch.Stop().on_signals() if args["watch"] else None
    embed.check(invocation.args, Tokenizer(load_tokenizer(args["tokenizer"]), "huggingface").vocabulary)

    def stage(**changes: Any) -> Invocation:
        return Invocation(argparse.Namespace(**{**args, **changes}), invocation.beam, stop=stop)

    if stop:
        first, second = _together(stop, stage(output=tokens), stage(input=tokens, output=embeddings))
    else:
        first = compress.run(stage(output=tokens))
        second = embed.run(stage(input=tokens, output=embeddings))
    both = {"output": output, **report.ended("done"), "compress": first, "embed": second}
    storage.publish_json(both, output, storage.join(output, "summary.json"))
    print(f"\ntokens      {tokens}\nembeddings  {embeddings}\nsummary     {storage.join(output, 'summary.json')}")
    return {k: first.get(k, 0) + second.get(k, 0) for k in ("rows_dead", "bad_shards")}


def _together(stop: watch.Stop, first: Invocation, second: Invocation) -> list[dict[str, Any]]:
    """Both stages, watching at once: the second what the first commits. Where one ends, the other drains."""

    def until_it_ends(stage: Any) -> dict[str, Any]:
        command, invocation = stage
        try:
            summary: dict[str, Any] = command.run(invocation)
            return summary
        finally:
            stop.asked = True

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(until_it_ends, [(compress, first), (embed, second)]))


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
