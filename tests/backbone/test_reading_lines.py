"""Reading JSON Lines and plain text: what is a row, what is a bad row, and what is a bad shard."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import reading, splits
from pipelines.splits import Split
from pipelines.stage import ERROR, ROW, Stats
from pipelines.storage import InputError

PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(path: Path, columns: list[str] | None = None) -> list[tuple[Any, ...]]:
    """(values…, error) of every row; the rows are numbered from 0 on."""
    columns = columns or ["text"]
    with reading.open_shard(str(path)) as reader:
        blocks = list(splits.blocks(Split(str(path), path.name, 0, ""), reader, columns, Stats()))
    rows = [r for b in blocks for r in b.column(ROW).to_pylist()]
    assert rows == list(range(len(rows)))
    assert all(0 < b.num_rows <= reading.BLOCK_ROWS for b in blocks)
    return [row for b in blocks for row in zip(*(b.column(c).to_pylist() for c in [*columns, ERROR]), strict=True)]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(PACK["" if path.suffix not in PACK else path.suffix](data))
    return path


def texts(rows: list[tuple[Any, ...]]) -> list[Any]:
    assert all(error is None for *_, error in rows)
    return [row[0] for row in rows]


@pytest.mark.parametrize("suffix", PACK)
def test_json_lines_in_every_packing(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"a.jsonl{suffix}", b'{"text": "one", "id": 1}\n{"id": 2, "text": "tw\\u00f6 \\n"}\n')
    assert read(path, ["id", "text"]) == [(1, "one", None), (2, "twö \n", None)]


@pytest.mark.parametrize("suffix", PACK)
def test_text_in_every_packing(tmp_path: Path, suffix: str) -> None:
    assert texts(read(put(tmp_path / f"a.txt{suffix}", b"one\n\ntwo\n"))) == ["one", "", "two"]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"\n", [""]),
        (b"\n\n", ["", ""]),
        (b"a\n\n\nb\n\n", ["a", "", "", "b", ""]),
        (b"", []),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        (b"a\rb\x0bc\x85d".replace(b"\x85", "\u2028".encode()), ["a\rb\x0bc\u2028d"]),
        (b"a \n\tb", ["a ", "\tb"]),
    ],
)
def test_what_is_a_row_of_text(tmp_path: Path, data: bytes, rows: list[str]) -> None:
    assert texts(read(put(tmp_path / "a.txt", data))) == rows


def test_lines_longer_than_a_block_and_lines_across_blocks(tmp_path: Path) -> None:
    rows = [
        "a" * (2 * reading.BLOCK_BYTES + 5),
        "b",
        "",
        "c" * (reading.BLOCK_BYTES - 1),
        "d" * 100,
        "\u00e9" * 3_000_000,
    ]
    assert texts(read(put(tmp_path / "a.txt", "\r\n".join(rows).encode()))) == rows
    lines = "\n".join(json.dumps({"text": r}) for r in rows)
    assert texts(read(put(tmp_path / "a.jsonl", lines.encode()))) == rows


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST_LINE", 3 * reading.BLOCK_BYTES)
    path = put(tmp_path / "a.txt.gz", bytes(5 * reading.BLOCK_BYTES))
    with pytest.raises(InputError, match=r"a\.txt\.gz: unreadable: a line is longer"):
        read(path)


def test_more_rows_than_a_block_has(tmp_path: Path) -> None:
    rows = reading.BLOCK_ROWS * 2 + 10
    assert len(read(put(tmp_path / "a.txt", b"\n" * rows))) == rows
    assert len(read(put(tmp_path / "a.jsonl", b'{"text":""}\n' * rows))) == rows


def test_blank_lines_byte_order_marks_and_line_ends_of_json(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}\n\n{"text": "c"}'
    assert texts(read(put(tmp_path / "a.jsonl", data))) == ["a", "b", "c"]


BAD_LINES = [
    (b'{"text": "a"', "not JSON"),
    (b"plain words", "not JSON"),
    (b'{"text": "a"} {"text": "b"}', "not JSON"),
    (b'["text", "a"]', "wrong type: a JSON list, expected an object"),
    (b'"text"', "wrong type: a JSON str, expected an object"),
    (b'{"text": 5}', "wrong type: text is int, expected string"),
    (b'{"text": ["a"]}', "wrong type: text is list, expected string"),
    (b'{"text": {"a": 1}}', "wrong type: text is dict, expected string"),
    (b'{"text": true}', "wrong type: text is bool, expected string"),
    (rb'{"text": "\ud800"}', "invalid UTF-8: text"),
    (b'{"text": "\xff"}', "invalid UTF-8: text"),
    (b'{"text": "\xed\xa0\x80"}', "invalid UTF-8: text"),
    (b'{"text": ' + b"[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_its_own_and_no_other_rows_trouble(tmp_path: Path, line: bytes, reason: str) -> None:
    path = put(tmp_path / "a.jsonl", b'{"text": "before"}\n' + line + b'\n{"text": "after"}\n{}\n{"text": null}\n')
    rows = read(path)
    assert rows[0] == ("before", None)
    assert rows[1][0] is None
    assert rows[1][1].startswith(reason)
    assert rows[2:] == [("after", None), (None, None), (None, None)]


def test_what_no_column_holds_is_no_trouble_whatever_the_other_rows_are(tmp_path: Path) -> None:
    odd = b'{"text": "a", "blob": "\xff"}\n{"text": "b", "blob": 1}\n'
    for rest in (b"", b"not JSON\n"):
        assert read(put(tmp_path / "a.jsonl", odd + rest))[:2] == [("a", None), ("b", None)]


def test_carried_columns_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "day": "2024-01-31", "at": "2024-01-31T12:00:00Z", "n": 9007199254740993, "f": 1, "b": True},
        {"text": "b", "day": "2024-02-01", "at": "2024-01-31 12:00:00", "n": None, "f": 1.5, "b": None},
        {"text": "c", "day": None, "at": "", "n": -1, "f": None, "b": False},
    ]
    nested = [{"tags": ["x", "y"], "meta": {"k": 1}}, {"tags": [], "meta": None}, {"tags": None, "meta": {"k": None}}]
    merged = [{**r, **n} for r, n in zip(rows, nested, strict=True)]
    data = "".join(json.dumps(r) + "\n" for r in merged).encode()
    for rest in (b"", b"not JSON\n"):  # both ways through a chunk
        found = read(put(tmp_path / "a.jsonl", data + rest), list(merged[0]))
        assert [dict(zip(merged[0], row, strict=False)) for row in found[:3]] == merged


def test_one_odd_value_does_not_decide_a_columns_type(tmp_path: Path) -> None:
    lines = [{"text": 7, "n": "x"}, *({"text": "a", "n": 1} for _ in range(5))]
    rows = read(put(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)).encode()), ["text", "n"])
    assert rows[0] == (None, None, "wrong type: text is int, expected string")
    assert rows[1:] == [("a", 1, None)] * 5


def test_numbers_too_large_for_a_column_are_bad_rows(tmp_path: Path) -> None:
    rows = read(put(tmp_path / "a.jsonl", b'{"text": "a", "n": 1}\n{"text": "b", "n": %d}\n' % 2**70), ["text", "n"])
    assert rows[0] == ("a", 1, None)
    assert rows[1][2].startswith("wrong type: n")
    put(tmp_path / "a.jsonl", b'{"text": "b", "n": %d}\n' % 2**70)
    assert read(tmp_path / "a.jsonl") == [("b", None)]


@pytest.mark.parametrize("name", ["e.jsonl", "e.jsonl.gz", "e.jsonl.zst", "e.txt", "e.txt.gz"])
@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_an_empty_shard_is_no_error(tmp_path: Path, compress: Any, name: str, data: bytes) -> None:
    put(tmp_path / name, data if "json" in name else b"")
    carry = ("id",) if "json" in name else ()
    made = compress(tmp_path / name, carry=carry)
    assert made.entries[0].counts["rows_in"] == 0
    assert made.table().schema.names == [*carry, "tokens", "n_tokens"]


@pytest.mark.parametrize("data", [b"not JSON\n" * 5, b"[1, 2]\n", b'{\n"text": "a"\n}\n', b"[" * 100_000])
def test_what_is_no_json_lines_at_all_is_one_error(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path / "a.jsonl", data)
    with pytest.raises(InputError, match=r"a\.jsonl: not one of its first lines is a JSON object"):
        read(path)


def test_a_missing_column_is_an_error_that_names_shard_and_columns(tmp_path: Path, compress: Any) -> None:
    put(tmp_path / "a.jsonl", b'{"body": "a", "id": 1}\n')
    with pytest.raises(InputError, match=r"a\.jsonl: no column 'text'; there are body, id"):
        compress(tmp_path)


@pytest.fixture(scope="module")
def noise() -> bytes:
    """Two megabytes of lines that do not pack well, so that damage lies anywhere in the packed bytes."""
    return b"".join(b'{"text": "%s"}\n' % os.urandom(200).hex().encode() for _ in range(5_000))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("keep", [0.3, 0.9, -9, -1])
def test_a_packed_shard_cut_short(tmp_path: Path, noise: bytes, suffix: str, name: str, keep: float) -> None:
    whole = PACK[suffix](noise)
    path = tmp_path / (name + suffix)
    path.write_bytes(whole[: int(keep * len(whole)) if keep > 0 else int(keep)])
    with pytest.raises(InputError) as e:
        read(path)
    assert str(e.value).startswith(f"{path}: unreadable: ")


def test_a_damaged_gzip_is_one_error(tmp_path: Path, noise: bytes) -> None:
    whole = bytearray(gzip.compress(noise))
    whole[len(whole) // 2] ^= 0x40
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: unreadable"):
        read(tmp_path / "a.jsonl.gz")
    for suffix in (".gz", ".zst"):
        (tmp_path / f"b.txt{suffix}").write_bytes(b"this is not packed")
        with pytest.raises(InputError, match=r"b\.txt.*: unreadable"):
            read(tmp_path / f"b.txt{suffix}")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_put_end_to_end_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"one\n") + PACK[suffix](b"two\n"))
    assert texts(read(path)) == ["one", "two"]


LINE = st.one_of(
    st.binary(max_size=12),
    st.fixed_dictionaries(
        {}, optional={"text": st.text(max_size=8) | st.none() | st.integers(), "n": st.integers()}
    ).map(lambda d: json.dumps(d).encode()),
).filter(lambda b: b"\n" not in b and not b.startswith(b"\xef\xbb\xbf"))


@settings(max_examples=200)
@given(lines=st.lists(LINE, max_size=8))
def test_any_lines_give_one_row_a_line_that_is_not_blank(tmp_path: Path, lines: list[bytes]) -> None:
    """Against the plain way: `json.loads` a line. Where it finds a string under `text`, that is the row's text."""
    path = put(tmp_path / "a.jsonl", b'{"text": "first"}\n' * 10 + b"\n".join(lines))
    expected: list[str | None] = []
    for line in (b for b in lines if b.strip()):
        try:
            value = json.loads(line)
            text = value.get("text") if isinstance(value, dict) else None
            expected.append(text if isinstance(text, str) else None)
        except (ValueError, RecursionError):
            expected.append(None)
    assert [text for text, _ in read(path)[10:]] == expected


@settings(max_examples=100)
@given(data=st.binary(max_size=60).map(lambda b: b.replace(b"\xef\xbb\xbf", b"")))
def test_any_bytes_are_rows_of_text(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path / "a.txt", data)
    with reading.open_shard(str(path)) as reader:
        rows = [r for b in reader.blocks(["text"], None, 0) for r in b.column("text").cast(pa.binary()).to_pylist()]
    expected = data.replace(b"\r\n", b"\n").split(b"\n")
    assert rows == (expected[:-1] if not expected[-1] else expected)
