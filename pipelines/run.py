"""Both stages, `tokzip run`: text shards to OUTPUT/tokens and OUTPUT/embeddings. Imports compress and embed."""

from __future__ import annotations

import argparse
from typing import Any

from pipelines import compress, embed, job, options, storage
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
    embed.check(invocation.args, Tokenizer(load_tokenizer(args["tokenizer"]), "huggingface").vocabulary)

    def stage(**changes: Any) -> Invocation:
        return Invocation(argparse.Namespace(**{**args, **changes}), invocation.beam)

    first = compress.run(stage(output=tokens))
    second = embed.run(stage(input=tokens, output=embeddings))
    both = {"output": output, "compress": first, "embed": second}
    storage.publish_json(both, output, storage.join(output, "summary.json"))
    print(f"\ntokens      {tokens}\nembeddings  {embeddings}\nsummary     {storage.join(output, 'summary.json')}")
    return {k: first.get(k, 0) + second.get(k, 0) for k in ("rows_dead", "bad_shards")}


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
