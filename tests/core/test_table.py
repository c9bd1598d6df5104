"""Blobs in Parquet: written with parquet_options, found and decoded by read_table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tokzip_core as tz

ROWS = [[1, 2, 3], None, [], [2**31 - 1]] * 500


def write(path: Path, codebook: tz.Codebook, carried: bool = True) -> pa.Table:
    """A file of blobs, and the table that reading it should give."""
    tokens = pa.array(ROWS, pa.list_(pa.int32()))
    others = {"n": pa.array(range(len(ROWS))), "nested": pa.array([{"a": ["x", str(i)]} for i in range(len(ROWS))])}
    table = pa.table({"tokens": tz.encode(tokens, codebook), **others})
    with pq.ParquetWriter(path, table.schema, **tz.parquet_options(table.schema)) as writer:
        writer.write_table(table, row_group_size=700)
        if carried:
            writer.add_key_value_metadata(tz.codebook_metadata(codebook))
    return pa.table({"tokens": tokens, **others})


@pytest.fixture
def codebook() -> tz.Codebook:
    return tz.train(pa.array(ROWS))


def test_a_file_alone_decodes(tmp_path: Path, codebook: tz.Codebook) -> None:
    expected = write(tmp_path / "a.parquet", codebook)
    assert tz.read_table(str(tmp_path / "a.parquet")).equals(expected)
    assert tz.read_table((tmp_path / "a.parquet").as_uri(), columns=["tokens"]).equals(expected.select(["tokens"]))
    part = tz.read_table(str(tmp_path / "a.parquet"), filters=[("n", "<", 5)])
    assert part.equals(expected.slice(0, 5))
    assert tz.file_codebook(str(tmp_path / "a.parquet")) == codebook
    with pytest.raises(tz.TokzipError, match="expected token blobs"):
        tz.file_codebook(str(tmp_path / "a.parquet"), "n")


def test_a_folder_of_files_of_different_codebooks(tmp_path: Path, codebook: tz.Codebook) -> None:
    expected = write(tmp_path / "a.parquet", codebook)
    write(tmp_path / "b.parquet", tz.train(pa.array([[5, 5, 6]])))
    assert tz.read_table(str(tmp_path)).equals(pa.concat_tables([expected, expected]))


def test_what_the_file_says_of_itself(tmp_path: Path, codebook: tz.Codebook) -> None:
    write(tmp_path / "a.parquet", codebook)
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.schema_arrow.field("tokens").type == tz.TokenBlobType("huffman", 1, codebook.id)
    blobs = file.metadata.row_group(0).column(0)
    assert blobs.compression == "UNCOMPRESSED"
    assert "DELTA_LENGTH_BYTE_ARRAY" in blobs.encodings
    assert blobs.statistics is None
    assert {file.metadata.row_group(0).column(i).compression for i in (1, 2)} == {"ZSTD"}
    assert sum(key.startswith(b"tokzip.codebook.") for key in file.metadata.metadata) == 1
    assert not any(key.startswith(b"tokzip") for key in file.schema_arrow.metadata or {})


def test_a_flipped_bit_is_found(tmp_path: Path, codebook: tz.Codebook) -> None:
    path = tmp_path / "a.parquet"
    write(path, codebook)
    column = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 4
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)a\.parquet: .*(crc|checksum)"):
        tz.read_table(str(path))
    with pytest.raises(pa.ArrowInvalid, match=r"a\.parquet: .*absent"):
        tz.read_table(str(path), columns=["absent"])


def test_the_codebook_beside_the_data_set(tmp_path: Path, codebook: tz.Codebook) -> None:
    path = tmp_path / "set" / "deep" / "a.parquet"
    path.parent.mkdir(parents=True)
    expected = write(path, codebook, carried=False)
    with pytest.raises(tz.UnknownCodebookError) as missing:
        tz.read_table(str(path))
    for part in (codebook.id, str(path), str(tmp_path / "set" / "_tokzip" / "codebook.tzc")):
        assert part in str(missing.value)
    other = tz.train(pa.array([[3]]))
    other.save(str(path.parent / "_tokzip" / "codebook.tzc"))
    with pytest.raises(tz.UnknownCodebookError, match=f"which is {other.id}"):
        tz.read_table(str(path))
    codebook.save(str(tmp_path / "set" / "_tokzip" / "codebook.tzc"))
    assert tz.read_table(str(path)).equals(expected)
    (path.parent / "_tokzip" / "codebook.tzc").write_bytes(b"damaged")  # the right one lies further up
    assert tz.read_table(str(path)).equals(expected)
    shutil.rmtree(path.parent / "_tokzip")
    assert tz.read_table(str(tmp_path / "set")).equals(expected)


def test_a_large_codebook_is_not_carried(codebook: tz.Codebook, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(codebook.to_bytes())
    monkeypatch.setattr("tokzip_core.table.LARGEST_KEPT", size)
    assert tz.codebook_metadata(codebook)
    monkeypatch.setattr("tokzip_core.table.LARGEST_KEPT", size - 1)
    assert tz.codebook_metadata(codebook) == {}


def test_metadata_with_another_codebook_is_refused(tmp_path: Path, codebook: tz.Codebook) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"tokens": tz.encode(pa.array([[1]]), codebook)})
    key = f"tokzip.codebook.{codebook.id}"
    other = next(iter(tz.codebook_metadata(tz.train(pa.array([[8]]))).values()))
    cases: Any = {"@@": "in its metadata", other: "under"}
    for value, fault in cases.items():
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({key: value})
        with pytest.raises(tz.CorruptCodebookError, match=fault):
            tz.read_table(str(path))
