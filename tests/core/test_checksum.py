"""The optional checksum of a row: what it finds, what carries it, and what files without it still mean."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from books import FORMAT
from hypothesis import given, settings
from hypothesis import strategies as st

import tokzip_core as tz
from tokzip_core.checksum import append_checksums, strip_checksums
from tokzip_core.columns import blob_column

ROWS: list[Any] = [[1, 2, 3, 4, 1, 2], None, [], [5] * 40, [7, 2**31 - 1, 300], [9]]
TOKENS = pa.array(ROWS, pa.list_(pa.int32()))


def checksum(data: bytes) -> bytes:
    """The checksum of one row of `data`, as it is stored."""
    stored, _ = append_checksums(data, np.array([len(data)]), None)
    assert stored[:-2].tobytes() == data
    return stored[-2:].tobytes()


def reference(data: bytes) -> int:
    """CRC-16/ISO-IEC-14443-3-A a bit at a time."""
    remainder = 0x6363
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x8408 if remainder & 1 else 0)
    return remainder


def column(blobs: list[bytes | None]) -> pa.Array:
    return pa.array(blobs, pa.binary())


def refused(blob: bytes, codebook: tz.Codebook) -> bool:
    try:
        tz.decode(column([blob]), codebook, checksum=True)
    except tz.CorruptBlobError as error:
        return str(error) == "row 0 is damaged: its checksum does not match"
    return False


def test_known_answers() -> None:
    assert checksum(b"123456789") == bytes.fromhex("05bf")  # the catalogues' check value, 0xBF05
    assert checksum(bytes.fromhex("0000")) == bytes.fromhex("a01e")  # these two from the standard
    assert checksum(bytes.fromhex("1234")) == bytes.fromhex("26cf")
    assert checksum(b"") == b"cc"


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_the_kernel_agrees_with_the_definition(data: bytes) -> None:
    assert checksum(data) == reference(data).to_bytes(2, "little")


@settings(deadline=None)
@given(st.lists(st.none() | st.binary(max_size=20), max_size=20))
def test_checksums_come_off_again(blobs: list[bytes | None]) -> None:
    plain = blob_column(column(blobs))
    size = int(plain.ends[-1]) if blobs else 0
    data, ends = append_checksums(plain.values[:size], plain.ends, plain.valid)
    expected = b"".join(b + reference(b).to_bytes(2, "little") for b in blobs if b is not None)
    assert data.tobytes() == expected
    starts = np.concatenate(([0], ends[:-1])).astype(np.int64)
    plain.values, plain.starts, plain.ends = data, starts[: len(blobs)], ends
    stripped = strip_checksums(plain)
    again = [data[a:b].tobytes() for a, b in zip(stripped.starts, stripped.ends, strict=True)]
    assert again == [b or b"" for b in blobs]


@pytest.mark.parametrize("codec", tz.codecs())
def test_every_flipped_bit_and_every_cut_is_found(codec: str) -> None:
    codebook = tz.train(TOKENS, codec)
    blobs = tz.encode(TOKENS, codebook, checksum=True)
    assert tz.decode(blobs, codebook).equals(TOKENS)
    assert tz.decode(blobs.storage, codebook, checksum=True).equals(TOKENS)
    assert (blobs.storage[1].as_py(), blobs.storage[2].as_py()) == (None, b"cc")
    for plain, blob in zip(tz.encode(TOKENS, codebook).storage.to_pylist(), blobs.storage.to_pylist(), strict=True):
        if blob is None:
            continue
        assert blob == plain + reference(plain).to_bytes(2, "little")
        for bit in range(8 * len(blob)):
            flipped = int.from_bytes(blob, "little") ^ 1 << bit
            assert refused(flipped.to_bytes(len(blob), "little"), codebook)
        assert all(refused(blob[:size], codebook) for size in range(len(blob)))


@settings(deadline=None)
@given(st.binary(max_size=5_000), st.integers(0), st.integers(1, 2**16 - 1))
def test_every_burst_of_16_bits_is_found(data: bytes, place: int, burst: int) -> None:
    codebook = tz.train(TOKENS, "raw")
    blob = data + reference(data).to_bytes(2, "little")
    damaged = int.from_bytes(blob, "little") ^ burst << place % (8 * len(blob) - 15)
    assert refused(damaged.to_bytes(len(blob), "little"), codebook)


def test_the_error_names_the_row() -> None:
    codebook = tz.train(TOKENS)
    blobs = tz.encode(TOKENS, codebook, checksum=True).storage.to_pylist()
    blobs[4] = bytes([blobs[4][0] ^ 1]) + blobs[4][1:]
    with pytest.raises(tz.CorruptBlobError, match="row 4 is damaged"):
        tz.decode(column(blobs), codebook, checksum=True)
    with pytest.raises(tz.CorruptBlobError, match="row 1 is damaged"):
        tz.decode(column(blobs)[3:], codebook, checksum=True)


def test_the_type_says_so() -> None:
    codebook = tz.train(TOKENS)
    with_it, without = tz.encode(TOKENS, codebook, checksum=True).type, tz.encode(TOKENS, codebook).type
    assert (with_it.checksum, without.checksum) == (True, False)
    assert with_it != without
    assert len({with_it, without, tz.TokenBlobType("huffman", 1, codebook.id, True)}) == 2
    assert with_it != tz.TokenBlobType("huffman", 1, "of another codebook", True)
    for kind in (with_it, without):
        assert pickle.loads(pickle.dumps(kind)) == kind
        assert tz.TokenBlobType.__arrow_ext_deserialize__(pa.binary(), kind.__arrow_ext_serialize__()) == kind
    assert without.__arrow_ext_serialize__() == b'{"codebook": "%s", "codec": "huffman", "version": 1}' % (
        codebook.id.encode()
    )  # as it was before there were checksums
    other = with_it.__arrow_ext_serialize__().replace(b"crc-16/iso-iec-14443-3-a", b"crc-32")
    with pytest.raises(tz.TokzipError, match="'crc-32'; this version of tokzip knows 'crc-16/iso"):
        tz.TokenBlobType.__arrow_ext_deserialize__(pa.binary(), other)


def test_columns_that_read_differently_do_not_mix() -> None:
    one = tz.encode(TOKENS, tz.train(TOKENS))
    for other in (tz.encode(TOKENS, tz.train(TOKENS), checksum=True), tz.encode(TOKENS, tz.train(TOKENS[:1]))):
        with pytest.raises(pa.ArrowInvalid):
            pa.concat_arrays([one, other])


def write(path: Path, blobs: pa.Array, codebook: tz.Codebook) -> None:
    table = pa.table({"tokens": blobs})
    with pq.ParquetWriter(path, table.schema, **tz.parquet_options(table.schema)) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(tz.codebook_metadata(codebook))


@pytest.mark.parametrize("codec", tz.codecs())
def test_files(codec: str, tmp_path: Path) -> None:
    path, codebook = tmp_path / "a.parquet", tz.train(TOKENS, codec)
    blobs = tz.encode(TOKENS, codebook, checksum=True)
    write(path, blobs, codebook)
    assert pq.read_schema(path).field("tokens").type == blobs.type
    assert tz.read_table(path)["tokens"].combine_chunks().equals(TOKENS)
    damaged = blobs.storage.to_pylist()
    damaged[3] = damaged[3][:-1] + bytes([damaged[3][-1] ^ 128])
    write(path, pa.ExtensionArray.from_storage(blobs.type, column(damaged)), codebook)
    with pytest.raises(tz.CorruptBlobError, match=r"a\.parquet: row 3 is damaged: its checksum does not match"):
        tz.read_table(path)


def test_the_documents_vector() -> None:
    section = FORMAT.split("\n## Checksum of a row\n")[1].split("\n## ")[0]
    printed = [line[1:-1].split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(printed) == 4
    for data, remainder, stored in ([cell.strip(" `") for cell in row] for row in printed):
        assert reference(bytes.fromhex(data)) == int(remainder, 16)
        assert bytes.fromhex(data) + checksum(bytes.fromhex(data)) == bytes.fromhex(stored)
