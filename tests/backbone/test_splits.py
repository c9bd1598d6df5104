"""Splits: their names, their planning, and the sample that a codebook is trained on."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import splits
from pipelines.splits import Split
from pipelines.storage import InputError


def text_column(schema: pa.Schema) -> list[str]:
    return [n for n in schema.names if n == "text"]


def shard(path: Path, rows: int, row_group_size: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"row {i} " + "x" * 90 for i in range(rows)]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=row_group_size)
    return path


def plan(*inputs: object, split_bytes: int = 1 << 30) -> list[Split]:
    return splits.plan(splits.find_shards(map(str, inputs)), text_column, split_bytes)


def test_a_shard_of_one_split_keeps_its_name(tmp_path: Path) -> None:
    shard(tmp_path / "train-00000-of-00001.parquet", 10)
    assert [s.name for s in plan(tmp_path)] == ["train-00000-of-00001.parquet"]


def test_names_of_several_splits_sort_in_their_order(tmp_path: Path) -> None:
    shard(tmp_path / "b.parquet", 120, row_group_size=10)
    shard(tmp_path / "a.parquet", 5)
    planned = plan(tmp_path, split_bytes=1)
    names = [s.name for s in planned]
    assert names == ["a.parquet", *(f"b.part-{i:05d}-of-00012.parquet" for i in range(12))]
    assert names == sorted(names)


def test_names_keep_folders_and_suffixes_of_other_formats(tmp_path: Path) -> None:
    shard(tmp_path / "x" / "data.parquet", 1)
    shard(tmp_path / "y" / "z" / "data.parquet", 1)
    (tmp_path / "x" / "data.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n'))
    expected = ["x/data.jsonl.gz.parquet", "x/data.parquet", "y/z/data.parquet"]
    assert [s.name for s in plan(tmp_path)] == expected
    assert [s.name for s in plan(tmp_path / "x", tmp_path / "y")] == expected
    assert [
        s.name for s in plan(tmp_path / "*/data.parquet", tmp_path / "**/*.gz", tmp_path / "y/**/*.parquet")
    ] == expected


def test_the_same_file_matched_twice_is_one_shard(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", 1)
    assert len(plan(tmp_path, tmp_path / "a.parquet", tmp_path / "*.parquet")) == 1


def test_two_shards_for_one_output_file_are_an_error_that_names_both(tmp_path: Path) -> None:
    shard(tmp_path / "a.jsonl.parquet", 1)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl\.parquet and .*a\.jsonl would both"):
        plan(tmp_path)


def test_hidden_files_and_folders_are_no_shards(tmp_path: Path) -> None:
    shard(tmp_path / "a.parquet", 1)
    for hidden in ("_tokzip/dead_letters/a.parquet", ".cache/b.parquet", "_SUCCESS.parquet", "sub/.c.parquet"):
        shard(tmp_path / hidden, 1)
    for pattern in (tmp_path, tmp_path / "**/*.parquet", tmp_path / "*.parquet"):
        assert [s.name for s in plan(pattern)] == ["a.parquet"]


def test_a_folder_above_may_be_hidden_and_a_name_may_have_glob_characters(tmp_path: Path) -> None:
    path = shard(tmp_path / ".cache" / "a[1].parquet", 1)
    assert [s.name for s in plan(path.parent)] == ["a[1].parquet"]
    assert [s.name for s in plan(path)] == ["a[1].parquet"]


def test_links_are_followed_as_in_the_hub_cache(tmp_path: Path) -> None:
    blob = shard(tmp_path / "blobs" / "0123.parquet", 7)
    (tmp_path / "snapshot").mkdir()
    os.symlink(blob, tmp_path / "snapshot" / "train.parquet")
    for pattern in ("snapshot", "snapshot/*.parquet", "snapshot/train.parquet"):
        (split,) = plan(tmp_path / pattern)
        assert (split.name, split.rows, split.size) == ("train.parquet", 7, blob.stat().st_size)
    before = plan(tmp_path / "snapshot")[0].fingerprint
    os.utime(blob, (1, 1))
    assert plan(tmp_path / "snapshot")[0].fingerprint != before, "a link's version is that of what it leads to"
    os.unlink(blob)
    with pytest.raises(InputError, match=r"snapshot/train\.parquet"):
        plan(tmp_path / "snapshot")


@pytest.mark.parametrize("pattern", ["nothing/*.parquet", "none.parquet", "empty", "empty/*"])
def test_no_match_is_an_error_that_names_the_pattern(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file matches") as e:
        plan(tmp_path / pattern)
    assert pattern in str(e.value)


@pytest.mark.parametrize("url", ["nosuchstore://bucket/x.parquet", "zip://a.parquet::/tmp/x.zip"])
def test_a_store_that_cannot_be_read_is_an_error_that_names_the_url(url: str) -> None:
    with pytest.raises(InputError) as e:
        plan(url)
    assert url in str(e.value)


@given(
    groups=st.lists(st.integers(0, 40), max_size=12),
    split_bytes=st.integers(1, 6_000),
)
def test_splits_cover_every_row_group_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], split_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("groups") / "s.parquet"
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for g, rows in enumerate(groups):
            writer.write_table(pa.table({"text": [f"{g} {i} {'x' * 50}" for i in range(rows)]}, schema=schema))
    stored = pq.read_metadata(path)
    planned = plan(path, split_bytes=split_bytes)
    row = group = 0
    for i, s in enumerate(planned):
        assert (s.index, s.count, s.first_row) == (i, len(planned), row)
        assert s.row_groups is not None
        assert s.row_groups[0] == group
        group, row = s.row_groups[1], row + s.rows
    assert (row, group) == (stored.num_rows, stored.num_row_groups)
    assert all(s.bytes <= split_bytes or s.row_groups[1] - s.row_groups[0] == 1 for s in planned if s.row_groups)


def test_only_the_columns_that_are_read_count_for_a_split(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"] * 100, "a.b": ["y" * 500 + str(i) for i in range(100)], "z": ["z" * 900] * 100})
    pq.write_table(table, tmp_path / "wide.parquet", row_group_size=10, use_dictionary=False)
    assert len(plan(tmp_path, split_bytes=5_000)) == 1
    shards = splits.find_shards([str(tmp_path)])
    assert len(splits.plan(shards, lambda _: ["text", "a.b"], 5_000)) > 5, "a name with a dot is a column too"


def test_an_empty_shard_is_one_split_of_no_rows(tmp_path: Path) -> None:
    shard(tmp_path / "empty.parquet", 0)
    (split,) = plan(tmp_path)
    assert (split.name, split.rows, split.count) == ("empty.parquet", 0, 1)


def test_thousands_of_tiny_shards(tmp_path: Path) -> None:
    first = shard(tmp_path / "0000.parquet", 1)
    for i in range(1, 3000):
        os.link(first, tmp_path / f"{i:04d}.parquet")
    planned = plan(tmp_path)
    assert [s.name for s in planned] == [f"{i:04d}.parquet" for i in range(3000)]


def test_a_fingerprint_changes_with_the_file_and_is_plain_json(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.parquet", 10)
    before = plan(path)[0].fingerprint
    assert plan(path)[0].fingerprint == before
    assert Split.from_fingerprint(before, "a.parquet").fingerprint == before
    shard(path, 11)
    assert plan(path)[0].fingerprint != before


def some_splits(sizes: list[int]) -> list[Split]:
    return [Split("u", f"{i}.parquet", 1, "", bytes=size) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200), st.integers(1, 50_000))
def test_a_sample_is_deterministic_spread_and_not_empty(sizes: list[int], max_bytes: int) -> None:
    planned = some_splits(sizes)
    sampled = splits.sample(planned, max_bytes)
    assert sampled == splits.sample(planned, max_bytes)
    assert sampled
    assert sampled == sorted(sampled, key=planned.index), "in order, none twice"
    if sum(sizes) <= max_bytes:
        assert sampled == planned


def test_a_sample_of_equal_splits_is_near_its_bound_and_reaches_both_ends() -> None:
    planned = some_splits([100] * 1000)
    sampled = splits.sample(planned, 10_000)
    assert 0.5 * 10_000 <= sum(s.bytes for s in sampled) <= 1.5 * 10_000
    at = [planned.index(s) for s in sampled]
    assert at[0] < 20
    assert at[-1] > 980
    assert splits.sample(planned, 1), "at least one"


def test_a_sample_leaves_out_bad_shards() -> None:
    planned = [*some_splits([5, 5]), Split("u", "bad.parquet", 1, "", problem="broken")]
    assert splits.sample(planned, 100) == planned[:2]
    assert splits.sample(planned[2:], 100) == []
