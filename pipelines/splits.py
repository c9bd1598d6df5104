"""Shards into splits: the unit of work, retry, commit and progress. Imports reading and storage.

A shard is an input file; a split is a run of whole row groups of one shard. A split's name, which its output file
bears, depends on nothing but the shard's name and the split's place in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipelines import reading, storage
from pipelines.stage import Stats
from pipelines.storage import FileInfo, InputError

_MOST_ROWS = 1 << 40  # of a row group: what a damaged footer says must not overflow when added up


@dataclass(frozen=True)
class Split:
    """Row groups [first, last) of a shard (None: all of a shard that has no row groups).

    `shard_name` is the shard's path below the input folder. `rows` is -1 where only reading tells, `split_bytes` what
    the shard was split by. A split with a `problem` stands for a shard that could not be planned: it has no rows, only
    a dead letter.
    """

    url: str
    shard_name: str
    size: int
    version: str
    index: int = 0
    count: int = 1
    row_groups: tuple[int, int] | None = None
    first_row: int = 0
    rows: int = -1
    bytes: int = 0
    split_bytes: int = 0
    problem: str | None = None

    @property
    def name(self) -> str:
        """The output file's path below the output folder; sorts as shards and splits do."""
        stem = self.shard_name.removesuffix(".parquet")
        if self.count == 1:
            return f"{stem}.parquet"
        return f"{stem}.part-{self.index:05d}-of-{self.count:05d}.parquet"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the output was made from; a split of equal fingerprint need not be done again."""
        fields = ("url", "size", "version", "index", "count", "row_groups", "first_row")
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k in fields}

    @staticmethod
    def from_fingerprint(source: dict[str, Any], shard_name: str, **more: Any) -> Split:
        """The split that an output was made from."""
        row_groups = source["row_groups"]
        return Split(**{**source, "row_groups": row_groups and tuple(row_groups)}, shard_name=shard_name, **more)


def find_shards(patterns: Iterable[str]) -> list[tuple[str, FileInfo]]:
    """(name, file) of every shard that the patterns match, sorted by name. Raises `InputError` for none, or a clash."""
    found = [storage.find(storage.absolute(p), reading.SUFFIXES) for p in patterns]
    roots = {root for root, _ in found}
    common = _common_folder(roots)
    shards: dict[str, FileInfo] = {}
    for _, files in found:
        for f in files:
            name = f.url[len(common) :].lstrip("/")
            if shards.setdefault(name, f).url != f.url:
                raise InputError(f"{f.url} and {shards[name].url} would both be named {name}")
    return sorted(shards.items())


def _common_folder(roots: set[str]) -> str:
    parts = [r.split("/") for r in roots]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return "/".join(shared)


def plan(
    shards: list[tuple[str, FileInfo]],
    columns_of: Callable[[pa.Schema], list[str]],
    split_bytes: int,
    skip_bad: bool = False,
    known: Callable[[str, FileInfo], list[Split]] = lambda name, f: [],
) -> list[Split]:
    """The splits of the shards, in order, each of about `split_bytes` of the columns that will be read.

    Only shards are opened of which `known`, given name and file, does not tell the splits. Raises `InputError` naming
    every shard that cannot be read or lacks a column, unless `skip_bad`: then each is a split with a `problem`.
    """

    def one(shard: tuple[str, FileInfo]) -> list[Split]:
        name, f = shard
        try:
            return known(name, f) or plan_shard(name, f, columns_of, split_bytes)
        except InputError as e:
            return [Split(f.url, name, f.size, f.version, rows=0, problem=str(e))]

    with ThreadPoolExecutor(16) as pool:
        splits = [s for planned in pool.map(one, shards) for s in planned]
    bad = [s.problem for s in splits if s.problem]
    if bad and not skip_bad:
        more = f" (and {len(bad) - 1} more bad shards)" if len(bad) > 1 else ""
        raise InputError(f"{bad[0]}{more}")
    names: dict[str, Split] = {}
    for s in splits:
        if (other := names.setdefault(s.name, s)) is not s:
            raise InputError(f"{s.url} and {other.url} would both be written to {s.name}")
    return splits


def plan_shard(name: str, f: FileInfo, columns_of: Callable[[pa.Schema], list[str]], split_bytes: int) -> list[Split]:
    """The splits of one shard, by its footer alone. Raises `InputError`."""
    with reading.open_shard(f.url) as reader, reading.input_errors(f.url):
        try:
            columns = columns_of(reader.schema)
        except InputError as e:
            raise InputError(f"{f.url}: {e}") from e
        if not isinstance(reader, reading.ParquetReader):
            return [Split(f.url, name, f.size, f.version, bytes=f.size, split_bytes=split_bytes)]
        meta = reader.file.metadata
        groups: list[tuple[int, int, int, int]] = []  # first group, last group, rows, bytes
        for g, size in enumerate(reading.column_bytes(meta, columns).sum(axis=1).tolist()):
            rows = meta.row_group(g).num_rows
            if not 0 <= rows <= _MOST_ROWS:
                raise InputError(f"{f.url}: unreadable: row group {g} has {rows} rows")
            if groups and groups[-1][3] + size <= split_bytes:
                first, _, r, s = groups[-1]
                groups[-1] = (first, g + 1, r + rows, s + size)
            else:
                groups.append((g, g + 1, rows, size))
    splits, row = [], 0
    for i, (first, last, rows, size) in enumerate(groups or [(0, 0, 0, 0)]):
        place = (i, max(len(groups), 1), (first, last), row, rows, size, split_bytes)
        splits.append(Split(f.url, name, f.size, f.version, *place))
        row += rows
    return splits


def sample(splits: list[Split], max_bytes: int) -> list[Split]:
    """Splits spread evenly over the data set, of about `max_bytes` (at least one): all of them if they fit."""
    usable = [s for s in splits if not s.problem]
    total = sum(s.bytes for s in usable)
    if total <= max_bytes:
        return usable
    step = max(1, round(total / max_bytes))
    return usable[step // 2 :: step] or usable[:1]


def blocks(split: Split, reader: reading.Reader, columns: list[str], stats: Stats) -> Iterator[pa.RecordBatch]:
    """The split's blocks, counted as `rows_in`; what goes wrong in here is the shard's fault: an `InputError`."""
    source = reader.blocks(columns, split.row_groups, split.first_row, split.bytes)
    rows = 0
    while True:
        with reading.input_errors(split.url), stats.time("read"):
            block = next(source, None)
        if block is None:
            break
        rows += block.num_rows
        stats.add("rows_in", block.num_rows)
        yield block
    if split.rows not in (-1, rows):
        raise InputError(f"{split.url}: {rows} rows where its footer had {split.rows}")
