"""Readers of shards: Parquet, JSON Lines and plain text as blocks of bounded size. Imports storage, stage, transient.

A reader knows its shard's `schema` and gives `blocks` (see `stage` for the two bookkeeping columns). It marks the
rows that it cannot make sense of with an error; what damages the whole shard raises `InputError`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from pipelines.stage import ERROR, ROW
from pipelines.storage import InputError, is_local, open_read
from pipelines.transient import FileChangedError, StorageError, is_transient
from tokzip_core.errors import TokzipError
from tokzip_core.footer import column_chunks

BLOCK_ROWS = 65_536
BLOCK_BYTES = 8 << 20
LONGEST_LINE = 1 << 30
_INFERENCE_ROWS = 1_000  # JSON Lines carries no schema: the types of its columns are those of its first rows

_TEXT = (".txt", ".txt.gz", ".txt.zst")
_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".json", ".json.gz", ".json.zst")
SUFFIXES = (".parquet", *_JSON, *_TEXT)


class Reader(Protocol):
    """One open shard."""

    schema: pa.Schema

    def blocks(
        self, columns: list[str], row_groups: tuple[int, int] | None, first_row: int, size: int = 0
    ) -> Iterator[pa.RecordBatch]:
        """The rows of `row_groups` (a half-open range; None: all of the shard), the first numbered `first_row`.

        size: bytes of the columns in them, where the caller has planned; 0: unknown.
        """


@contextmanager
def input_errors(url: str) -> Iterator[None]:
    """What goes wrong while the shard is read, as one `InputError` that names it."""
    try:
        yield
    except (InputError, StorageError):
        raise
    except FileNotFoundError as e:
        raise InputError(f"{url}: no such file") from e
    except FileChangedError as e:
        raise InputError(str(e)) from e
    except TokzipError as e:  # of a type of ours, which Arrow reads for us
        raise InputError(f"{url}: unreadable: {e}") from e
    except (pa.ArrowException, OSError, EOFError, ValueError) as e:
        if is_transient(e):  # the store's fault, not the shard's
            raise StorageError(f"{url}: {type(e).__name__}: {e}") from e
        raise InputError(f"{url}: unreadable: {next(iter(str(e).splitlines()), type(e).__name__)}") from e


@contextmanager
def open_shard(url: str) -> Iterator[Reader]:
    """The reader that the URL's suffix asks for. Raises `InputError` naming the shard and what is wrong with it."""
    with ExitStack() as stack:
        with input_errors(url):
            reader: Reader
            if url.endswith(_JSON):
                reader = JsonLinesReader(url, _open_lines(url, stack))
            elif url.endswith(_TEXT):
                reader = TextReader(_open_lines(url, stack))
            elif url.endswith(".parquet"):
                reader = ParquetReader(url, stack.enter_context(open_parquet(url)))
            else:
                raise InputError(f"{url}: unknown suffix; known are {', '.join(SUFFIXES)}")
        yield reader


def _open_lines(url: str, stack: ExitStack) -> Any:
    """The file, decompressed by Arrow: unlike others it tells a stream that is cut short, and goes on to the next."""
    raw = stack.enter_context(open_read(url))
    kind = _COMPRESSED.get(url[url.rfind(".") :])
    return stack.enter_context(pa.CompressedInputStream(raw, kind)) if kind else raw


def open_parquet(url: str) -> pq.ParquetFile:
    """The Parquet file for streaming: page by page, checksums verified where the file has them."""
    source = url if is_local(url) else open_read(url)
    return pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)


def with_bookkeeping(block: pa.RecordBatch, first_row: int, errors: pa.Array | None = None) -> pa.RecordBatch:
    rows = pa.array(np.arange(first_row, first_row + block.num_rows, dtype=np.int64))
    block = block.append_column(pa.field(ROW, pa.int64(), nullable=False), rows)
    return block.append_column(ERROR, pa.nulls(len(block), pa.string()) if errors is None else errors)


class ParquetReader:
    def __init__(self, url: str, file: pq.ParquetFile) -> None:
        self.url, self.file = url, file
        # With the file's own metadata: Arrow's schema in it has that of whoever wrote the schema, before the rows.
        self.schema = file.schema_arrow.with_metadata(file.metadata.metadata)

    def blocks(
        self, columns: list[str], row_groups: tuple[int, int] | None, first_row: int, size: int = 0
    ) -> Iterator[pa.RecordBatch]:
        meta = self.file.metadata
        groups = range(*(row_groups or (0, meta.num_row_groups)))
        if groups.stop > meta.num_row_groups:
            raise InputError(f"{self.url}: has {meta.num_row_groups} row groups: it has changed while it was used")
        rows = sum(meta.row_group(g).num_rows for g in groups)
        size = size or int(column_bytes(meta, columns)[groups.start : groups.stop].sum())
        batch_rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES * max(rows, 1) // max(size, 1)))
        for batch in self.file.iter_batches(batch_rows, row_groups=list(groups), columns=columns, use_threads=False):
            ordered = batch.select(columns)
            for block in _bounded(ordered):
                yield with_bookkeeping(block, first_row)
                first_row += block.num_rows


def column_bytes(meta: pq.FileMetaData, columns: list[str]) -> npt.NDArray[np.int64]:
    """int64[row groups, columns]: uncompressed bytes of the columns (of a nested one, all its leaves).

    Raises ValueError where the footer makes no sense.
    """
    paths = [meta.schema.column(c).path for c in range(meta.num_columns)]
    leaves = [[i for i, path in enumerate(paths) if path == c or path.split(".")[0] == c] for c in columns]
    chunks = ([chunk.uncompressed_bytes for chunk in group] for group in column_chunks(meta))
    sizes = [[sum(group[i] for i in column) for column in leaves] for group in chunks]
    return np.array(sizes, np.int64).reshape(meta.num_row_groups, len(columns))


def _bounded(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Halves of the batch until each is near the block size: long rows may stand together."""
    if batch.nbytes <= 2 * BLOCK_BYTES or batch.num_rows < 2:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _bounded(batch.slice(0, half))
    yield from _bounded(batch.slice(half))


def _whole_lines(f: Any) -> Iterator[bytes]:
    """Runs of whole lines of about a block; a longer line comes alone. The last may lack its line break."""
    pending: list[bytes] = []
    first = True
    while chunk := f.read(BLOCK_BYTES):
        if first:
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield b"".join([*pending, chunk[:cut]])
            pending = [chunk[cut:]]
        else:
            pending.append(chunk)
            if len(pending) * BLOCK_BYTES > LONGEST_LINE:
                raise ValueError(f"a line is longer than {LONGEST_LINE} bytes")
    if rest := b"".join(pending):
        yield rest


class TextReader:
    """Plain text: a row a line, blank lines as empty strings, in a column named `text`."""

    schema = pa.schema([("text", pa.string())])

    def __init__(self, f: Any) -> None:
        self.f = f

    def blocks(
        self, columns: list[str], row_groups: tuple[int, int] | None, first_row: int, size: int = 0
    ) -> Iterator[pa.RecordBatch]:
        for lines in _whole_lines(self.f):
            text = lines.replace(b"\r\n", b"\n").removesuffix(b"\n")
            rows = pc.split_pattern(pa.array([text], pa.large_binary()), b"\n").flatten()
            # A view, not a cast: rows that are not UTF-8 are the stage's to judge, one by one.
            block = pa.record_batch([rows.cast(pa.binary()).view(pa.string())], schema=self.schema)
            for start in range(0, block.num_rows, BLOCK_ROWS):
                part = block.slice(start, BLOCK_ROWS)
                yield with_bookkeeping(part, first_row)
                first_row += part.num_rows


class JsonLinesReader:
    """JSON Lines: an object a line; blank lines are no rows; a missing key is a null."""

    def __init__(self, url: str, f: Any) -> None:
        self.chunks = _whole_lines(f)
        self.first = next((c for c in self.chunks if c.strip()), b"")  # none: an empty shard, of no columns
        self.schema = _infer(url, self.first)

    def blocks(
        self, columns: list[str], row_groups: tuple[int, int] | None, first_row: int, size: int = 0
    ) -> Iterator[pa.RecordBatch]:
        if not self.first:
            return
        schema = pa.schema([self.schema.field(c) for c in columns])
        options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        chunk, self.first = self.first, b""
        while chunk:
            lines = [line for line in chunk.split(b"\n") if line.strip()]
            errors = None
            try:
                read = pj.ReadOptions(use_threads=False, block_size=len(chunk) + 1)
                table = pj.read_json(io.BytesIO(chunk), read, options).select(columns).combine_chunks()
                if table.num_rows != len(lines):
                    raise pa.ArrowInvalid("more or fewer objects than lines")
                table.validate(full=True)  # the parser lets invalid UTF-8 pass
                block = next(iter(table.to_batches()), None)
            except pa.ArrowException:
                block, errors = _line_by_line(lines, schema)
            if block is not None and block.num_rows:
                whole = with_bookkeeping(block, first_row, errors)
                yield from (whole.slice(s, BLOCK_ROWS) for s in range(0, block.num_rows, BLOCK_ROWS))
                first_row += block.num_rows
            chunk = next(self.chunks, b"")


def _infer(url: str, chunk: bytes) -> pa.Schema:
    """The columns of the first objects. Not Arrow's own inference, which turns strings into dates."""
    objects = []
    for line in chunk.split(b"\n", _INFERENCE_ROWS)[:_INFERENCE_ROWS]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            objects.append(value)
    if chunk and not objects:
        raise InputError(f"{url}: not one of its first lines is a JSON object")
    fields = []
    for name in dict.fromkeys(key for o in objects for key in o):
        kind = _type_of([o.get(name) for o in objects])
        fields.append(pa.field(name, pa.string() if pa.types.is_null(kind) else kind))
    return pa.schema(fields)


def _type_of(values: list[Any]) -> pa.DataType:
    """The type that most of the values share: one odd row must not decide for the others."""
    kinds: dict[type, list[Any]] = {}
    for v in values:
        if v is not None:
            kinds.setdefault(float if type(v) is int else type(v), []).append(v)
    most = max(kinds.values(), key=len, default=[])
    try:
        return pa.infer_type(most)
    except (pa.ArrowException, ValueError, OverflowError):
        return pa.string()


def _line_by_line(lines: list[bytes], schema: pa.Schema) -> tuple[pa.RecordBatch, pa.Array]:
    """The slow way through a chunk in which some line is not what it should be, to find out which and why."""
    columns: list[list[Any]] = [[] for _ in schema]
    errors: list[str | None] = []
    for line in lines:
        values, error = _parse(line, schema)
        errors.append(error)
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema), pa.array(errors, pa.string())


def _parse(line: bytes, schema: pa.Schema) -> tuple[list[Any], str | None]:
    nothing = [None] * len(schema)
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))  # only what a column holds must be UTF-8
    except (ValueError, RecursionError) as e:
        return nothing, f"not JSON: {e}"
    if not isinstance(value, dict):
        return nothing, f"wrong type: a JSON {type(value).__name__}, expected an object"
    for field in schema:
        try:
            pa.array([value.get(field.name)], field.type)
        except UnicodeEncodeError:
            return nothing, f"invalid UTF-8: {field.name} has a lone surrogate or a stray byte"
        except (pa.ArrowException, OverflowError, TypeError):
            found = type(value[field.name]).__name__
            return nothing, f"wrong type: {field.name} is {found}, expected {field.type}"
    return [value.get(f.name) for f in schema], None
