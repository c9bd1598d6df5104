"""Reads damaged Parquet footers in a process of its own: `footer_fuzz.py FOLDER FIRST LAST`. Imports splits, reading.

Prints a line before each mutation and how it ended after; the last line says which one ended the process. Mutations
change fields of a well-formed footer (numbers, texts, list lengths, missing and doubled fields) as well as its bytes.
"""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import tokzip_core as tz
from pipelines import reading, splits
from pipelines.stage import Stats
from pipelines.storage import InputError
from tokzip_core.footer import column_chunks

_NUMBERS = [0, 1, -1, 2, 3, 7, 8, 127, 255, 1 << 15, (1 << 31) - 1, -(1 << 31), 1 << 32, (1 << 63) - 1, -(1 << 63)]
_LONGEST = 600  # seconds: nothing of this takes one, so beyond it hangs
_ROOM = 4 << 30  # bytes of address space above what the process has at its start


def seeds(folder: Path) -> list[bytes]:
    """Whole files that use what Parquet has: statistics, indexes, nesting, dictionaries, encodings, token blobs."""
    texts = [f"row {i} " * (i % 7) for i in range(200)]
    tokens = pa.array([[i % 11] * (i % 5) for i in range(200)])
    plain = pa.table({"text": texts, "n": range(200)})
    nested = pa.table({"text": pa.array(texts).dictionary_encode(), "l": [[1, None]] * 200, "s": [{"a": 1}] * 200})
    book = tz.train(tokens)
    blobs = pa.table({"text": texts, "tokens": tz.encode(tokens, book)})
    blobs = blobs.replace_schema_metadata(tz.codebook_metadata(book))
    path, found = folder / "seed.parquet", []
    for table, size, options in (
        (plain, 20, {"compression": "zstd", "write_page_checksum": True, "write_page_index": True}),
        (nested, 64, {"data_page_version": "2.0"}),
        (blobs, 100, tz.parquet_options(blobs.schema)),
    ):
        pq.write_table(table, path, row_group_size=size, **options)
        found.append(path.read_bytes())
    return found


def mutated(data: bytes, r: random.Random) -> bytes:
    size = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - size], data[-8 - size : -8]
    if r.random() < 0.1:
        changed = bytearray(footer)
        changed[r.randrange(size)] ^= r.randrange(1, 256)
        footer = bytes(changed)
    else:
        fields, _ = _read(footer, 0, 12)
        for _ in range(r.choice([1, 1, 2, 4])):
            _change(fields, r)
        footer = _written(12, fields)
    return body + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _change(fields: list[Any], r: random.Random) -> None:
    """Change one field or element below: all are […, type, value] in a list."""
    places: list[tuple[list[Any], list[Any]]] = []
    below = [fields]
    while below:
        box = below.pop()
        for item in box:
            places.append((box, item))
            if item[-2] == 12:
                below.append(item[-1])
            elif item[-2] == 9:
                below.append(item[-1][1])
    box, item = r.choice(places)
    kind, value, how = item[-2], item[-1], r.random()
    if how < 0.1:
        box.remove(item)
    elif how < 0.2:
        box.insert(r.randrange(len(box) + 1), item)
    elif how < 0.25 and len(item) == 3:
        item[0] = r.randrange(1, 16)
    elif kind in (1, 2):
        item[-2] = 3 - kind
    elif kind == 3:
        item[-1] = r.randrange(256)
    elif kind in (4, 5, 6):
        item[-1] = r.choice([r.choice(_NUMBERS), value + 1, value - 1, value * 2, r.randrange(100)])
    elif kind == 8:
        item[-1] = r.choice([b"", value[:-1], value + b"x", b"\xff\xfe", r.randbytes(len(value)), b"A" * 1000])
    elif kind == 9:
        value[1][:] = r.choice([[], value[1][:-1], value[1] * 2, value[1][::-1]])


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] > 127:
        value, shift, at = value | (data[at] & 127) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def _read(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """In Thrift's compact protocol: a struct is [[number, type, value], …], a list [type, [[type, value], …]]."""
    if kind in (1, 2):
        return None, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        n, at = _varint(data, at)
        return (n >> 1) ^ -(n & 1), at
    if kind == 7:
        return data[at : at + 8], at + 8
    if kind == 8:
        n, at = _varint(data, at)
        return data[at : at + n], at + n
    items: list[Any] = []
    if kind == 9:
        of, size, at = data[at] & 15, data[at] >> 4, at + 1
        if size == 15:
            size, at = _varint(data, at)
        for _ in range(size):
            value, at = _read(data, at, of)
            items.append([of, value])
        return [of, items], at
    number = 0
    while header := data[at]:
        number, at = number + (header >> 4), at + 1
        value, at = _read(data, at, header & 15)
        items.append([number, header & 15, value])
    return items, at + 1


def _coded(n: int) -> bytes:
    n &= (1 << 64) - 1
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _written(kind: int, value: Any) -> bytes:
    if kind in (1, 2):
        return b""
    if kind == 3:
        return bytes([value])
    if kind in (4, 5, 6):
        return _coded(value << 1 if value >= 0 else ~(value << 1))
    if kind == 7:
        return bytes(value)
    if kind == 8:
        return _coded(len(value)) + value
    if kind == 9:
        of, items = value
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + _coded(len(items))
        return head + b"".join(_written(*item) for item in items)
    out, last = b"", 0
    for number, of, item in value:
        near = 0 < number - last < 16
        out += bytes([number - last << 4 | of]) if near else bytes([of]) + _coded(number << 1)
        out += _written(of, item)
        last = number
    return out + b"\0"


def _text(schema: pa.Schema) -> list[str]:
    if "text" not in schema.names:
        raise InputError("no text")
    return ["text"]


def _chunks(path: Path) -> None:
    with pq.ParquetFile(path) as file:
        list(column_chunks(file.metadata))


def read_all_ways(path: Path) -> str:
    """How planning and reading the shard ends, after all that must not end the process either."""
    for read in (_chunks, tz.read_table, tz.TokenStore.open):
        with contextlib.suppress(OSError, ValueError, pa.ArrowException, tz.TokzipError):
            read(path)
    rows = 0
    try:
        for split in splits.plan(splits.find_shards([str(path)]), _text, 2000):
            with reading.open_shard(str(path)) as reader:
                for block in splits.blocks(split, reader, ["text"], Stats()):
                    block.validate()
                    rows += block.num_rows
    except InputError as e:
        return "error" if "\n" not in str(e) else "an error of several lines"
    return f"{rows} rows"


def main() -> None:
    folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    whole, path = seeds(folder), folder / "shard.parquet"
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ROOM,) * 2)
    for i in range(first, last):
        r = random.Random(i)
        path.write_bytes(mutated(whole[i % len(whole)], r))
        print(i, "", end="", flush=True)
        signal.alarm(_LONGEST)
        print(read_all_ways(path), flush=True)
    signal.alarm(0)


if __name__ == "__main__":
    main()
