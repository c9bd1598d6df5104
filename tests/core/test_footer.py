"""What `footer` finds in a Parquet footer is what pyarrow finds, and what makes no sense is refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokzip_core import footer

CODECS = {"UNCOMPRESSED": footer.UNCOMPRESSED, "SNAPPY": 1, "GZIP": 2, "BROTLI": 4, "ZSTD": 6}
ENCODINGS = {"PLAIN": footer.PLAIN, "RLE": footer.RLE, "DELTA_LENGTH_BYTE_ARRAY": 6, "RLE_DICTIONARY": 8}


def metadata(table: pa.Table, **options: Any) -> pq.FileMetaData:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return pq.read_metadata(pa.BufferReader(sink.getvalue()))


WIDE = pa.table({f"column {i}": [f"{i} {j}" for j in range(40)] for i in range(20)})
NESTED = pa.table({"l": [[1, None]] * 40, "s": [{"a": 1, "b": ["x"]}] * 40, "bool": [True] * 40})


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (WIDE, {"row_group_size": 2, "compression": "zstd"}),
        (WIDE, {"compression": {"column 1": "gzip", "column 2": "brotli"}, "write_page_index": True}),
        (WIDE, {"use_dictionary": False, "column_encoding": {"column 3": "DELTA_LENGTH_BYTE_ARRAY"}}),
        (NESTED, {"row_group_size": 17, "compression": "none", "write_statistics": False}),
        (NESTED.select(["l"]), {"sorting_columns": [pq.SortingColumn(0)]}),
        (NESTED.slice(0, 0), {}),
        (pa.table({}), {}),
    ],
)
def test_chunks_are_those_that_pyarrow_finds(table: pa.Table, options: dict[str, Any]) -> None:
    meta = metadata(table, **options)
    groups = [meta.row_group(g) for g in range(meta.num_row_groups)]
    expected = [[group.column(c) for c in range(group.num_columns)] for group in groups]
    found = list(footer.column_chunks(meta))
    assert [[c.uncompressed_bytes for c in g] for g in found] == [
        [c.total_uncompressed_size for c in g] for g in expected
    ]
    assert [[c.codec for c in g] for g in found] == [[CODECS.get(c.compression, -1) for c in g] for g in expected]
    assert [[set(c.encodings) for c in g] for g in found] == [
        [{ENCODINGS[e] for e in c.encodings} for c in g] for g in expected
    ]


class _Footer:
    """The metadata that Arrow would have read from these bytes."""

    num_columns = 1

    def __init__(self, size: bytes, columns: int = 1) -> None:
        chunk = b"\x3c" + b"\x66" + size + b"\x00" + b"\x00"  # field 3, a struct, in it field 6, an i64
        groups = b"\x49\x1c" + b"\x19" + bytes([columns << 4 | 12]) + chunk * columns + b"\x00"
        self.data = b"PAR1" + groups + b"\x00"

    def write_metadata_file(self, sink: Any) -> None:
        sink.write(self.data)


def test_sizes_that_cannot_be_are_refused() -> None:
    assert [[c.uncompressed_bytes for c in g] for g in footer.column_chunks(_Footer(b"\x0e"))] == [[7]]
    with pytest.raises(ValueError, match="row group 0 has a column chunk of -4 bytes"):
        list(footer.column_chunks(_Footer(b"\x07")))
    with pytest.raises(ValueError, match=f"a column chunk of {2**60} bytes"):
        list(footer.column_chunks(_Footer(bytes([0x80] * 8 + [0x20]))))
    with pytest.raises(ValueError, match="row group 0 has 2 columns, the schema 1"):
        list(footer.column_chunks(_Footer(b"\x0e", 2)))
