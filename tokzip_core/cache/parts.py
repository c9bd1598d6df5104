"""The files of a folder layer: Parquet, written once under a name of its own. Imports pyarrow, footer, and kernels
when used.

Columns: `key` (fixed_size_binary[32]), `value` (binary), `sum` (uint64: the entry's checksum, XXH64 of the value seeded
with the key's last 8 bytes). Nothing is ever renamed or written twice. A store may show a file before it is whole:
then it has no footer yet and cannot be read.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokzip_core import footer
from tokzip_core.cache.index import MAX_ROWS, Keys, key_words
from tokzip_core.cache.layer import KEY, flat

GROUP_ROWS = 1024
_ROW_BYTES = 32 + 4 + 8  # at least: key, length of the value, checksum
SCHEMA = pa.schema(
    [pa.field(n, t, nullable=False) for n, t in (("key", KEY), ("value", pa.binary()), ("sum", pa.uint64()))],
    {"tokzip.cache": "2"},
)


class DamagedPartError(ValueError):
    """A file that is no part, or not a whole one."""


@contextlib.contextmanager
def _told_apart(path: str) -> Iterator[None]:
    """Of the errors of reading a file, those of its content as DamagedPartError; those of its store as they are."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        # What Arrow finds wrong with a file is a ValueError or a bare OSError; what stores raise says more.
        if isinstance(error, OSError) and not (type(error) is OSError and error.errno is None):
            raise
        raise DamagedPartError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Part:
    name: str
    path: str
    number: int  # in the index
    size: int
    groups: int


@dataclass(frozen=True)
class Entries:
    """Of one row group: keys uint64 `[n, 4]`, values, and which of them have their checksum."""

    keys: Keys
    values: pa.BinaryArray
    good: npt.NDArray[np.bool_]


def list_parts(fs: Any, root: str) -> dict[str, int]:
    """Names and sizes of the files that may be parts; none where there is no folder."""
    fs.invalidate_cache(root)
    try:
        found = fs.ls(root, detail=True)
    except FileNotFoundError:
        return {}
    names = ((d["name"].rstrip("/").rpartition("/")[2], d) for d in found if d["type"] == "file")
    return {name: int(d["size"] or 0) for name, d in names if name.endswith(".parquet")}


def write(fs: Any, root: str, name: str, number: int, words: Keys, values: pa.BinaryArray) -> Part:
    """Write a part, and see that it is there whole. Raises OSError."""
    from tokzip_core.kernels import entries

    data, starts, ends = flat(values)
    sums = np.empty(len(words), np.uint64)
    entries.checksums(words, data, starts, ends, sums)
    keys = pa.FixedSizeBinaryArray.from_buffers(KEY, len(words), [None, pa.py_buffer(words.tobytes())])
    sink = io.BytesIO()
    pq.write_table(
        pa.table([keys, values, pa.array(sums)], schema=SCHEMA),
        sink,
        row_group_size=GROUP_ROWS,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    path, content = f"{root}/{name}", sink.getvalue()
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(path, content)
    if (size := fs.size(path)) != len(content):
        raise OSError(f"{path} has {size} bytes of the {len(content)} written")
    return Part(name, path, number, len(content), -(-len(words) // GROUP_ROWS))


def read_keys(fs: Any, path: str) -> tuple[Keys, int]:
    """A part's keys, and how many row groups it has. Raises DamagedPartError or OSError."""
    with _told_apart(path), fs.open(path, "rb") as f:
        file = _opened(f, path)
        return key_words(file.read(columns=["key"]).column("key").combine_chunks()), file.num_row_groups


def read_group(fs: Any, part: Part, number: int) -> Entries:
    """Raises DamagedPartError or OSError."""
    from tokzip_core.kernels import entries

    with _told_apart(part.path), fs.open(part.path, "rb") as f:
        table = _opened(f, part.path).read_row_group(number)
    values = table.column("value").combine_chunks()
    words = key_words(table.column("key").combine_chunks())
    data, starts, ends = flat(values)
    sums = np.empty(len(words), np.uint64)
    entries.checksums(words, data, starts, ends, sums)
    return Entries(words, values, sums == table.column("sum").to_numpy())


def _opened(f: Any, path: str) -> pq.ParquetFile:
    """The file, once its footer says that reading takes no more memory than the file has bytes."""
    size = f.seek(0, io.SEEK_END)
    file = pq.ParquetFile(f)
    if not file.schema_arrow.equals(SCHEMA) or (file.schema_arrow.metadata or {}).get(b"tokzip.cache") != b"2":
        raise DamagedPartError(f"{path} is no part of a cache of this version")
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if any(n != GROUP_ROWS for n in rows[:-1]) or max(rows, default=0) > GROUP_ROWS or sum(rows) > MAX_ROWS:
        raise DamagedPartError(f"{path}: row groups of {rows} rows")
    chunks = [chunk for group in footer.column_chunks(file.metadata) for chunk in group]
    if sum(c.uncompressed_bytes for c in chunks) > size or sum(rows) * _ROW_BYTES > size:
        raise DamagedPartError(f"{path}: {sum(rows)} rows, of more bytes than the file's {size}")
    if any(c.codec != footer.UNCOMPRESSED or not {footer.PLAIN, footer.RLE}.issuperset(c.encodings) for c in chunks):
        raise DamagedPartError(f"{path}: is compressed, or has a dictionary")
    return file
