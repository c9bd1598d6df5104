"""`tokzip compress --row-checksum`: rows end in checksums, and it is part of what a data set is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards import parquet

import tokzip_core as tz
from pipelines.manifest import Manifest

Command = Callable[..., tuple[int, str]]


def test_row_checksums(tmp_path: Path, compress_all: Command, command: Command) -> None:
    out = tmp_path / "out"
    parquet(tmp_path / "in" / "a.parquet", ["hello", "", "a b", None])
    assert compress_all()[0] == 3
    plain, expected = pq.read_table(out / "a.parquet", use_threads=False), tz.read_table(out)
    assert not plain.schema.field("tokens").type.checksum
    assert all("checksum" not in name for entry in Manifest(str(out)).entries() for name in entry.identity)

    code, printed = compress_all("--row-checksum")
    assert code == 1
    assert "was made with row_checksum = None" in printed

    other = tmp_path / "other"
    assert compress_all("--row-checksum", "--output", other)[0] == 3
    checked = pq.read_table(other / "a.parquet", use_threads=False)
    assert checked.schema.field("tokens").type.checksum
    blobs, longer = plain["tokens"].combine_chunks().storage, checked["tokens"].combine_chunks().storage
    assert [row[:-2] for row in longer.to_pylist()] == blobs.to_pylist()
    assert tz.read_table(other).equals(expected)
    assert command("verify", other, "--input", tmp_path / "in")[0] == 0
    (entry,) = Manifest(str(other)).entries()
    assert entry.identity["row_checksum"] == "crc-16/iso-iec-14443-3-a"
    assert entry.counts["blob_bytes"] == sum(len(row) for row in longer.to_pylist())
    assert compress_all("--output", other)[0] == 1

    damaged = longer.to_pylist()
    damaged[2] = bytes([damaged[2][0] ^ 4]) + damaged[2][1:]
    kind = checked.schema.field("tokens").type
    bad = pa.ExtensionArray.from_storage(kind, pa.array(damaged, pa.binary()))
    pq.write_table(checked.set_column(0, "tokens", bad), other / "a.parquet")
    with pytest.raises(tz.CorruptBlobError, match="row 2 is damaged"):
        tz.read_table(other)
    assert command("verify", other, "--input", tmp_path / "in")[0] == 1
