"""Token blobs in Parquet: how to write them, and a reader that decodes. Imports blob, codebook, fsspec."""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any

import pyarrow as pa

from tokzip_core.blob import TokenBlobType, blob_rows, decode, naming
from tokzip_core.codebook import Codebook
from tokzip_core.columns import Column
from tokzip_core.errors import CorruptCodebookError, TokzipError, UnknownCodebookError

KEY = "tokzip.codebook."
LARGEST_KEPT = 1 << 20  # bytes of a codebook that every file carries
SIDECAR = "_tokzip/codebook.tzc"


def codebook_metadata(codebook: Codebook) -> dict[str, str]:
    """The key-value metadata that makes a file self-contained; none for a codebook of more than 1 MiB."""
    data = codebook.to_bytes()
    if len(data) > LARGEST_KEPT:
        return {}
    return {KEY + codebook.id: base64.b64encode(data).decode("ascii")}


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Keyword arguments of `pyarrow.parquet.ParquetWriter` for tables with blob columns.

    Blobs are already dense: they are written as they are, their lengths packed, without statistics. Every page
    carries its checksum.
    """
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    leaves = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    blobs = {field.name for field in schema if isinstance(field.type, TokenBlobType)}
    others = [path for path in (leaves.column(i).path for i in range(len(leaves))) if path not in blobs]
    return {
        "compression": dict.fromkeys(blobs, "none") | dict.fromkeys(others, "zstd"),
        "use_dictionary": others,
        "write_statistics": others,
        "column_encoding": dict.fromkeys(blobs, "DELTA_LENGTH_BYTE_ARRAY"),
        "write_page_checksum": True,
    }


def read_table(source: str | PathLike[str], columns: list[str] | None = None, filters: Any = None) -> pa.Table:
    """Read Parquet (a path or fsspec URL of a file, or of a folder of files) with every blob column decoded.

    columns, filters: as `pyarrow.parquet.read_table` has them. Page and row checksums are verified. Raises
    UnknownCodebookError naming the codebook and the places looked at, CorruptBlobError, CorruptCodebookError.
    """
    return pa.concat_tables([_read_file(fs, path, columns, filters) for fs, path in files_of(source)])


def files_of(source: str | PathLike[str]) -> list[tuple[Any, str]]:
    """The file at a path or fsspec URL, or the Parquet files of the folder there, each as (file system, path)."""
    import pyarrow.dataset as ds
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(str(source))
    if not fs.isdir(path):
        return [(fs, path)]
    files = ds.dataset(path, format="parquet", filesystem=fs).files
    if not files:
        raise FileNotFoundError(f"{source} has no Parquet file")
    return [(fs, file) for file in files]


def blob_chunks(fs: Any, path: str, column: str) -> tuple[Codebook, Iterator[Column]]:
    """The codebook of a file's blob column, and the rows of the column as they are read, checksums verified."""
    import pyarrow.parquet as pq

    with fs.open(path, "rb") as file:
        codebook = _codebook_of(fs, path, pq.read_metadata(file), column)

    def chunks() -> Iterator[Column]:
        row = 0
        with fs.open(path, "rb") as file, _naming_file(path):
            source = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in source.iter_batches(columns=[column], use_threads=False):
                with naming(range(row, row + len(batch)), f"{path}: "):
                    rows = blob_rows(batch.column(0), codebook)
                yield rows
                row += len(batch)

    return codebook, chunks()


def file_codebook(source: str | PathLike[str], column: str = "tokens") -> Codebook:
    """The codebook that the blobs of a Parquet file (path or fsspec URL) need: from its metadata, or from beside it.

    Raises UnknownCodebookError where it is in none of those places, TokzipError where `column` is no blob column.
    """
    import pyarrow.parquet as pq
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(str(source))
    with fs.open(path, "rb") as file, _naming_file(path):
        metadata = pq.read_metadata(file)
    return _codebook_of(fs, path, metadata, column)


def _codebook_of(fs: Any, path: str, metadata: Any, column: str) -> Codebook:
    schema = metadata.schema.to_arrow_schema()
    kind = schema.field(column).type if column in schema.names else None
    if not isinstance(kind, TokenBlobType):
        raise TokzipError(f"{path}: column {column!r} is {kind or 'missing'}, expected token blobs")
    return _find(fs, path, metadata.metadata or {}, kind.codebook_id)


def _read_file(fs: Any, path: str, columns: list[str] | None, filters: Any) -> pa.Table:
    import pyarrow.parquet as pq

    with fs.open(path, "rb") as file, _naming_file(path):
        # One thread: when Python ends, a thread of Arrow's pool that still holds our extension type aborts the process.
        table = pq.read_table(
            file, columns=columns, filters=filters, use_threads=False, page_checksum_verification=True
        )
        file.seek(0)
        metadata = pq.read_metadata(file).metadata or {}
    for i, field in enumerate(table.schema):
        if isinstance(field.type, TokenBlobType):
            codebook = _find(fs, path, metadata, field.type.codebook_id)
            decoded, row = [], 0
            for chunk in table.column(i).chunks:
                with naming(range(row, row + len(chunk)), f"{path}: "):
                    decoded.append(decode(chunk, codebook))
                row += len(chunk)
            kind = pa.list_(pa.int32())
            table = table.set_column(i, field.with_type(kind), pa.chunked_array(decoded, kind))
    return table


@contextmanager
def _naming_file(path: str) -> Iterator[None]:
    """What Arrow says of a file does not name it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        error.args = (f"{path}: {error}",)  # a new one might take other arguments, and would lose an errno
        raise


def _find(fs: Any, path: str, metadata: dict[bytes, bytes], codebook_id: str) -> Codebook:
    """The codebook of a file: in its own metadata, else beside the data set, searched upward from the file."""
    kept = metadata.get((KEY + codebook_id).encode())
    if kept is not None:
        try:
            codebook = Codebook.from_bytes(base64.b64decode(kept, validate=True))
        except (binascii.Error, CorruptCodebookError) as error:
            raise CorruptCodebookError(f"{path}: the codebook in its metadata: {error}") from error
        if codebook.id != codebook_id:
            raise CorruptCodebookError(f"{path}: its metadata has codebook {codebook.id} under {codebook_id}")
        return codebook
    places = [f"the metadata of {path}"]
    folder = posixpath.dirname(path)
    while True:
        place = posixpath.join(folder, SIDECAR)
        if fs.exists(place):
            try:
                codebook = Codebook.from_bytes(fs.cat_file(place))
            except TokzipError as error:  # of another kind, or damaged: the right one may lie further up
                place += f" (which cannot be read: {error})"
            else:
                if codebook.id == codebook_id:
                    return codebook
                place += f" (which is {codebook.id})"
        places.append(place)
        if posixpath.dirname(folder) == folder:
            break
        folder = posixpath.dirname(folder)
    raise UnknownCodebookError(f"codebook {codebook_id} is in none of: {', '.join(places)}")
