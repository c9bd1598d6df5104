"""Column chunks as a Parquet footer has them, without the accessor of pyarrow that aborts. Imports nothing of ours.

`RowGroupMetaData.column` checks what it makes where nobody catches the exception: on a damaged footer the process ends.
All else that is asked of pyarrow in these rooms raises errors, as it should. So the facts are taken from the footer's
bytes, as Arrow writes them again: Thrift's compact protocol (github.com/apache/thrift,
doc/specs/thrift-compact-protocol.md) of the structures in Apache Parquet's parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

UNCOMPRESSED = 0  # of CompressionCodec
PLAIN, RLE = 0, 3  # of Encoding

_MAGIC = 4  # bytes before the first field
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3  # fields of FileMetaData, RowGroup, ColumnChunk
_ENCODINGS, _CODEC, _TOTAL_UNCOMPRESSED_SIZE = 2, 4, 6  # of ColumnMetaData
_BOOLS, _BYTE, _INTEGERS, _BINARY, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 8, (9, 10), 12  # types of Thrift
_SIZES = {1: 0, 2: 0, _BYTE: 1, 7: 8}  # bytes; 7 is a double
_LARGEST_CHUNK = 1 << 40  # bytes


class Chunk(NamedTuple):
    """A column chunk: its numbers in Parquet's enumerations, and its size with headers before compression."""

    encodings: list[int]
    codec: int
    uncompressed_bytes: int


def column_chunks(metadata: Any) -> Iterator[list[Chunk]]:
    """The chunks of every row group of a `pyarrow.parquet.FileMetaData`, one for each leaf column.

    Raises ValueError where a row group has other columns than the schema, or a chunk no size, or one that cannot be.
    """
    sink = pa.BufferOutputStream()
    metadata.write_metadata_file(sink)  # well-formed, whatever the file has
    walk = _Walk(sink.getvalue().to_pybytes(), _MAGIC)
    for _ in walk.fields(_ROW_GROUPS):
        for number in range(walk.list_size()):
            chunks: list[Chunk] = []
            for _ in walk.fields(_COLUMNS):
                chunks = [walk.chunk() for _ in range(walk.list_size())]
            if len(chunks) != metadata.num_columns:
                raise ValueError(f"row group {number} has {len(chunks)} columns, the schema {metadata.num_columns}")
            for c in chunks:
                if not 0 <= c.uncompressed_bytes <= _LARGEST_CHUNK:
                    raise ValueError(f"row group {number} has a column chunk of {c.uncompressed_bytes} bytes")
            yield chunks


class _Walk:
    """A place in a message of Thrift's compact protocol."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def fields(self, *numbers: int) -> Iterator[int]:
        """In a struct: stop at the value of each field that is asked for and there; end behind the struct."""
        number = 0
        while header := self.data[self.at]:
            self.at += 1
            number = number + (header >> 4) if header >> 4 else self.integer()
            if number in numbers:
                yield number
            else:
                self.at = _behind(self.data, self.at, header & 15)
        self.at += 1

    def chunk(self) -> Chunk:
        encodings: list[int] = []
        codec = size = -1
        for _ in self.fields(_META_DATA):
            for number in self.fields(_ENCODINGS, _CODEC, _TOTAL_UNCOMPRESSED_SIZE):
                if number == _ENCODINGS:
                    encodings = [self.integer() for _ in range(self.list_size())]
                elif number == _CODEC:
                    codec = self.integer()
                else:
                    size = self.integer()
        return Chunk(encodings, codec, size)

    def list_size(self) -> int:
        size, _, self.at = _list_header(self.data, self.at)
        return size

    def integer(self) -> int:
        zigzag, self.at = _varint(self.data, self.at)
        return (zigzag >> 1) ^ -(zigzag & 1)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1


def _list_header(data: bytes, at: int) -> tuple[int, int, int]:
    """The number of elements, their type, and where they begin."""
    header = data[at]
    if header < 0xF0:
        return header >> 4, header & 15, at + 1
    size, at = _varint(data, at + 1)
    return size, header & 15, at


def _behind(data: bytes, at: int, kind: int) -> int:
    """Where a value ends. That of a bool is in the header of its field."""
    if kind in _INTEGERS:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == _BINARY:
        size, at = _varint(data, at)
        return at + size
    if kind in _LISTS:
        size, of, at = _list_header(data, at)
        for _ in range(size):
            at = _behind(data, at, _BYTE if of in _BOOLS else of)
        return at
    if kind == _STRUCT:
        while header := data[at]:
            at = at + 1 if header >> 4 else _varint(data, at + 1)[1]
            at = _behind(data, at, header & 15)
        return at + 1
    if kind in _SIZES:
        return at + _SIZES[kind]
    raise ValueError(f"Thrift type {kind} at byte {at} is none of Parquet's")
