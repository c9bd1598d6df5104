"""`run_split`: what stage 1 makes of a split, what it calls a bad row, and how a split comes to be committed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import bytes_below, parquet

import tokzip_core as tz
from pipelines.map_splits import run_split
from pipelines.storage import InputError


def test_every_row_is_tokenized_in_order(tmp_path: Path, compress: Any, bert: Any) -> None:
    texts = [f"Row {i} of a shard, with words." * (i % 5) for i in range(5_000)]
    parquet(tmp_path / "in" / "a.parquet", texts, row_group_size=400)
    made = compress(tmp_path / "in", split_bytes=20_000)
    assert len(made.entries) > 3
    assert made.table()["tokens"].to_pylist() == bert.encode(pa.array(texts)).to_pylist()
    assert made.table()["n_tokens"].to_pylist() == [len(t) for t in made.table()["tokens"].to_pylist()]
    assert sum(e.counts["tokens"] for e in made.entries) == sum(made.table()["n_tokens"].to_pylist())
    assert sum(e.counts["rows_in"] for e in made.entries) == len(texts)


def test_the_entry_tells_the_truth_about_its_files(tmp_path: Path, compress: Any) -> None:
    parquet(tmp_path / "in" / "x" / "a.parquet", ["a", None, "b c"])
    parquet(tmp_path / "in" / "b.parquet", ["d"])
    made = compress(tmp_path / "in")
    assert sorted(e.name for e in made.entries) == ["b.parquet", "x/a.parquet"]
    for described in (d for e in made.entries for d in (e.output, e.dead_letters) if d):
        data = Path(made.output, described["path"]).read_bytes()
        assert (described["bytes"], described["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    stored = pq.ParquetFile(f"{made.output}/x/a.parquet")
    assert stored.metadata.metadata[b"tokzip.tokenizer"]
    blob = stored.read(columns=["tokens"])["tokens"].combine_chunks().storage
    assert made.entries[1].counts["blob_bytes"] == sum(len(b) for b in blob.to_pylist())


def test_bad_rows_become_dead_letters_with_shard_row_and_reason(tmp_path: Path, compress: Any) -> None:
    text = pa.array(["good", None, b"caf\xe9", b"\xf0\x9f\x8e", "", "also good"], pa.binary())
    path = parquet(tmp_path / "in" / "a.parquet", text, row_group_size=2)
    made = compress(path, split_bytes=1)
    assert made.dead() == [
        {"shard": str(path), "row": 1, "reason": "null text"},
        {"shard": str(path), "row": 2, "reason": "invalid UTF-8 at byte 3"},
        {"shard": str(path), "row": 3, "reason": "invalid UTF-8 at byte 0"},
    ]
    assert [(e.counts["rows_in"], e.counts["rows_out"], e.counts["rows_dead"]) for e in made.entries] == [
        (2, 1, 1),
        (2, 0, 2),
        (2, 2, 0),
    ]
    assert made.table()["n_tokens"].to_pylist() == [1, 0, 2]


def test_invalid_utf8_in_a_string_column_is_found_too(tmp_path: Path, compress: Any) -> None:
    column = pa.array([b"ok", b"\xff\xfe", b"ok"], pa.binary()).view(pa.string())
    made = compress(parquet(tmp_path / "in" / "a.parquet", column))
    assert [(d["row"], d["reason"]) for d in made.dead()] == [(1, "invalid UTF-8 at byte 0")]


def test_json_rows_of_the_wrong_type_are_dead_letters(tmp_path: Path, compress: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": 5}\n{}\n{"text": "b"\n{"text": "c"}\n')
    made = compress(path)
    reasons = {d["row"]: d["reason"].split(":")[0] for d in made.dead()}
    assert reasons == {1: "wrong type", 2: "null text", 3: "not JSON"}
    assert made.table().num_rows == 2


def test_carried_columns_keep_their_values_types_and_rows(tmp_path: Path, compress: Any) -> None:
    carried = {
        "id": pa.array([10, 11, 12, 13], pa.uint16()),
        "when": pa.array([0, None, 2, 3], pa.timestamp("us", "UTC")),
        "tags": pa.array([["a"], [], None, ["b", "c"]], pa.list_(pa.string())),
        "meta": pa.array([{"x": 1, "y": "p"}, None, {"x": None, "y": "q"}, {"x": 4, "y": None}]),
        "lang": pa.array(["en", "de", "en", None]).dictionary_encode(),
        "price": pa.array([1, 2, None, 4], pa.decimal128(9, 2)),
        "a.b": pa.array([0.5, 1.5, 2.5, 3.5]),
    }
    path = parquet(tmp_path / "in" / "a.parquet", ["a", None, "", "b"], row_group_size=2, **carried, unread=[0] * 4)
    made = compress(path, carry=(*carried, "text"))
    table = made.table()
    assert table.schema.names == [*carried, "text", "tokens", "n_tokens"]
    source = pq.read_table(path).take([0, 2, 3])
    for name in carried:
        assert table[name].to_pylist() == source[name].to_pylist()
        assert table.schema.field(name).type == source.schema.field(name).type
    assert table["text"].to_pylist() == ["a", "", "b"]


def test_a_required_column_may_be_carried(tmp_path: Path, compress: Any) -> None:
    schema = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("id", pa.int32(), nullable=False)])
    pq.write_table(pa.table([["a", "b"], [1, 2]], schema=schema), tmp_path / "a.parquet")
    assert compress(tmp_path / "a.parquet", carry=("id", "text")).table()["id"].to_pylist() == [1, 2]


def test_a_committed_split_is_left_alone(tmp_path: Path, compress: Any) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", ["a", None])
    made = compress(path)
    before = bytes_below(made.output)
    assert [run_split(s, made.stage, made.output) for s in made.planned] == made.entries
    assert bytes_below(made.output) == before


def test_two_attempts_end_in_the_same_bytes(tmp_path: Path, compress: Any) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", [f"some text {i}" for i in range(3_000)] + [None], row_group_size=100)
    made = [compress(path, output=tmp_path / name, split_bytes=10_000) for name in ("one", "two")]
    one, two = ({n: h for n, h in bytes_below(m.output).items() if "manifest" not in n} for m in made)
    assert one == two
    assert not list(Path(made[0].output, "_tokzip", "tmp").iterdir()), "no scratch file is left"


def test_attempts_at_once_leave_an_entry_and_a_file_that_agree(tmp_path: Path, compress: Any) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", [f"some text {i}" for i in range(20_000)])
    made = compress(path)
    (split,) = made.planned
    os.unlink(f"{made.output}/_tokzip/manifest/a.parquet.json")
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            run_split(split, made.stage, made.output)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert made.table().num_rows == 20_000
    assert hashlib.sha256(Path(made.output, "a.parquet").read_bytes()).hexdigest() == made.entries[0].output["sha256"]


def test_a_changed_shard_is_redone_and_stale_dead_letters_go(tmp_path: Path, compress: Any) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", ["a", None])
    dead = Path(compress(path).output, "_tokzip", "dead_letters", "a.parquet")
    assert dead.exists()
    parquet(path, ["a", "b", "c"])
    made = compress(path)
    assert made.table().num_rows == 3
    assert made.entries[0].dead_letters is None
    assert not dead.exists()


def test_a_shard_gone_bad_takes_its_output_along(tmp_path: Path, compress: Any) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", ["a", "b"])
    made = compress(path, skip_bad=True)
    path.write_bytes(path.read_bytes()[:-20])
    made = compress(path, skip_bad=True)
    assert not Path(made.output, "a.parquet").exists()
    (letter,) = made.dead()
    assert (letter["shard"], letter["row"]) == (str(path), None)
    assert str(path) in letter["reason"]
    assert made.entries[0].counts == {"rows_in": 0, "rows_out": 0, "rows_dead": 0, "bad_shards": 1}


def test_a_bad_shard_is_tried_again(tmp_path: Path, compress: Any) -> None:
    """What was unreadable may have been the store's fault: the file is the same, and may be readable by now."""
    path = parquet(tmp_path / "in" / "a.parquet", ["a", "b"])
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(whole)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert compress(path, skip_bad=True).entries[0].counts["bad_shards"] == 1
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    made = compress(path, skip_bad=True)
    assert made.table().num_rows == 2
    assert made.dead() == []


def test_a_shard_damaged_in_the_middle(tmp_path: Path, compress: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning sees a good footer; the damage shows after rows have been written, and nothing of them may stay."""
    path = parquet(tmp_path / "in" / "a.parquet", [f"some text {i:06d}" for i in range(12_000)], 4_000)
    monkeypatch.setattr("pipelines.reading.BLOCK_BYTES", 20_000)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"some text 011900") + 12] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"in/a\.parquet: unreadable: .*CRC"):
        compress(path)
    assert bytes_below(tmp_path / "out").keys() == {"_tokzip/tokenizer.json", "_tokzip/codebook.tzc"}
    made = compress(path, skip_bad=True)
    assert [(d["shard"], d["row"]) for d in made.dead()] == [(str(path), None)]
    assert not Path(made.output, "a.parquet").exists()


# ---- the whole of it, against the plain way

TEXT = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.sampled_from(["", " ", "[SEP] hello", "don't [MASK]", "\u0000", "e\u0301", "漢字かな", "a" * 300, "\ud7ff"]),
)


@settings(max_examples=60)
@given(
    shards=st.lists(st.lists(TEXT, max_size=12), min_size=1, max_size=3),
    row_group_size=st.integers(1, 5),
    split_bytes=st.sampled_from([1, 60, 1 << 30]),
    form=st.sampled_from(["parquet", "jsonl"]),
)
def test_any_corpus_gives_what_the_tokenizer_gives(
    tmp_path_factory: pytest.TempPathFactory,
    compress: Any,
    tiny_json: str,
    shards: list[list[str | None]],
    row_group_size: int,
    split_bytes: int,
    form: str,
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    for i, texts in enumerate(shards):
        path = folder / "in" / f"{i}.{form}"
        if form == "parquet":
            parquet(path, pa.array(texts, pa.string()), row_group_size)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    made = compress(folder / "in", output=folder / "out", split_bytes=split_bytes, tokenizer_json=tiny_json)
    tokenizer = tokenizers.Tokenizer.from_str(tiny_json)
    good = [t for texts in shards for t in texts if t is not None]
    expected = [tokenizer.encode(t, add_special_tokens=False).ids for t in good]
    assert made.table()["tokens"].to_pylist() == expected
    dead = [(str(folder / "in" / f"{i}.{form}"), r) for i, s in enumerate(shards) for r, t in enumerate(s) if t is None]
    assert [(d["shard"], d["row"]) for d in made.dead()] == dead
    assert isinstance(pq.read_schema(f"{made.output}/{made.entries[0].name}").field("tokens").type, tz.TokenBlobType)
