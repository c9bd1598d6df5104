"""`tokzip inspect`: what a file or a data set holds, for people. Imports tokzip_core, manifest and report."""

from __future__ import annotations

import json
from typing import Any

import tokzip_core as tz
from pipelines import job, reading, storage
from pipelines.manifest import Manifest
from pipelines.options import Invocation, Parser
from pipelines.report import ratio, read_json, show


def parser(prog: str = "tokzip inspect") -> Parser:
    p = Parser(prog=prog, description="Show what a Parquet file, a data set or a codebook of tokzip holds.")
    p.add_argument("file", help="path or URL of a Parquet file, a data set's folder, or a codebook (.tzc)")
    p.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show (default 3)")
    return p


def run(invocation: Invocation) -> dict[str, Any]:
    url = storage.absolute(invocation.args.file)
    if url.endswith(".tzc"):
        print(show(_codebook(tz.load_codebook(url)), url))
    elif url.endswith(".parquet"):
        _file(url, invocation.args.rows)
    else:
        home = Manifest(url)
        settings = read_json(home.place("dataset.json"))
        if not settings:
            raise storage.InputError(f"{url}: neither a Parquet file, nor a codebook, nor a data set of tokzip")
        print(show({**settings, "splits": len(home.names()), **read_json(home.place("summary.json"))}, url))
    return {}


def _codebook(codebook: tz.Codebook) -> dict[str, Any]:
    return {
        "codec": f"{codebook.codec}, version {codebook.version}",
        "codebook_id": codebook.id,
        "codebook_bytes": len(codebook.to_bytes()),
        "expected_bits": codebook.expected_bits,
    }


def _file(url: str, rows: int) -> None:
    with reading.input_errors(url), reading.open_parquet(url) as file:
        meta, schema = file.metadata, file.schema_arrow
        sizes = reading.column_bytes(meta, schema.names).sum(axis=0).tolist()
        leaves = dict(zip(schema.names, sizes, strict=True))
        kept = {k.decode(): v for k, v in (meta.metadata or {}).items() if k.startswith(b"tokzip.")}
        described = {k: json.loads(v) for k, v in kept.items() if not k.startswith("tokzip.codebook.")}
        table = tz.read_table(url)
    facts: dict[str, Any] = {"rows": meta.num_rows, "row_groups": meta.num_row_groups}
    facts["columns"] = [f"{f.name}: {f.type}" for f in schema]
    facts.update({f"{name}_bytes": size for name, size in leaves.items()})
    facts.update(described)
    for field in schema:
        if isinstance(field.type, tz.TokenBlobType):
            tokens = sum(len(c.flatten()) for c in table[field.name].chunks)
            facts["codec"], facts["codebook_id"] = field.type.codec, field.type.codebook_id
            facts["tokens"] = tokens
            facts["bits_per_token"] = ratio(8 * leaves[field.name], tokens)
    print(show(facts, url))
    for i, row in enumerate(table.slice(0, max(0, rows)).to_pylist()):
        print(f"row {i}: " + ", ".join(f"{k} = {_short(v)}" for k, v in row.items()))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def main(argv: list[str] | None = None) -> int:
    return job.command(parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
