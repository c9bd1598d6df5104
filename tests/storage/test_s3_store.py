"""What differs between an object store and a disk: listings that caches keep, uploads in parts, shards that change."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import command
from s3_store import Store

import tokzip_core as tz
from pipelines import storage

pytestmark = pytest.mark.slow


def read(url: str) -> bytes:
    with storage.open_read(url) as f:
        return f.read()


def test_a_listing_has_what_others_wrote_since_the_last(store: Store) -> None:
    store.write("listed/sub/a.txt", b"first")
    store.write("listed/sub/b.txt", b"stays")
    _, before = storage.find(store.url("listed"), (".txt",))
    assert [read(f.url) for f in before] == [b"first", b"stays"]
    store.write("listed/sub/a.txt", b"second, and longer")
    store.write("listed/sub/c.txt", b"new")
    for pattern in ("listed", "listed/*/*.txt", "listed/sub"):
        _, after = storage.find(store.url(pattern), (".txt",))
        assert [f.size for f in after] == [18, 5, 3], pattern
        assert [read(f.url) for f in after] == [b"second, and longer", b"stays", b"new"], pattern
        assert [a.version == b.version for a, b in zip(after, before, strict=False)] == [False, True]
    assert len(storage.list_files(store.url("listed"), ".txt")) == 3
    assert storage.list_files(store.url("nothing/here"), ".txt") == []
    assert not storage.exists(store.url("listed/sub/d.txt"))
    store.write("listed/sub/d.txt", b"later")
    assert storage.exists(store.url("listed/sub/d.txt"))
    storage.remove(store.url("listed/sub/d.txt"))
    assert not storage.exists(store.url("listed/sub/d.txt"))


def test_a_file_larger_than_one_request_appears_whole(store: Store, tmp_path: Path) -> None:
    """s3fs sends 100 MiB and more in parts."""
    size, digest = 101 << 20, hashlib.sha256()
    with storage.scratch_file(store.url("large")) as scratch:
        with open(scratch, "wb") as f:
            for i in range(101):
                block = i.to_bytes(4, "little") * (1 << 18)
                digest.update(block)
                f.write(block)
        storage.publish(scratch, store.url("large/file"))
    (versions,) = store.versions("large").values()
    assert len(versions) == 1
    assert "-" in versions[0], "an ETag of several parts"
    assert store.client.list_multipart_uploads(Bucket="corpus").get("Uploads", []) == []
    with storage.open_read(store.url("large/file")) as f:
        assert f.seek(0, 2) == size
        f.seek(0)
        assert hashlib.file_digest(f, "sha256").hexdigest() == digest.hexdigest()


@pytest.fixture
def token_data(store: Store, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix with two text shards in `in` and their token data set in `tokens`; scratch files go to tmp_path."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    prefix = tmp_path.name
    store.write(f"{prefix}/in/a.txt", b"hello world\nhello again\n")
    store.write(f"{prefix}/in/sub/b.txt", b"hello b\n\xff not UTF-8\n")
    compress(store, prefix, tokenizer_folder, code=3)
    return prefix


def compress(store: Store, prefix: str, tokenizer: Path, code: int) -> None:
    named = ["--input", store.url(f"{prefix}/in"), "--output", store.url(f"{prefix}/tokens"), "--tokenizer", tokenizer]
    command("compress", *named, "--no-progress", code=code)


def test_the_result_is_read_by_its_url(store: Store, token_data: str, tmp_path: Path) -> None:
    url = store.url(f"{token_data}/tokens")
    table = tz.read_table(url)
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table.num_rows == 3
    opened = tz.TokenStore.open(url)
    assert [row.tolist() for row in opened[[0, 1, 2]].to_numpy(zero_copy_only=False)] == table["tokens"].to_pylist()
    codebook = tz.load_codebook(f"{url}/_tokzip/codebook.tzc")
    assert tz.file_codebook(f"{url}/a.txt.parquet").id == codebook.id
    (dead,) = (b for n, b in store.objects(f"{token_data}/tokens").items() if "/dead_letters/" in n)
    (row,) = pq.read_table(pa.BufferReader(dead)).to_pylist()
    assert row["shard"] == store.url(f"{token_data}/in/sub/b.txt")
    assert "UTF-8" in row["reason"]
    assert list(tmp_path.glob("tokzip*")) == [], "scratch files are gone"


def test_changed_new_and_deleted_shards(store: Store, token_data: str, tokenizer_folder: Path) -> None:
    store.write(f"{token_data}/in/a.txt", b"hello earth\nhello again\n")  # of the same size, in the same second
    store.write(f"{token_data}/in/sub/c.txt", b"hello c\n")
    store.client.delete_object(Bucket="corpus", Key=f"{token_data}/in/sub/b.txt")
    before = tz.read_table(store.url(f"{token_data}/tokens"))["tokens"].to_pylist()
    compress(store, token_data, tokenizer_folder, code=0)
    tokens = store.objects(f"{token_data}/tokens")
    assert sorted(n for n in tokens if not n.startswith("_tokzip/")) == ["a.txt.parquet", "sub/c.txt.parquet"]
    summary = json.loads(tokens["_tokzip/summary.json"])
    assert (summary["rows_in"], summary["rows_dead"]) == (3, 0)
    after = tz.read_table(store.url(f"{token_data}/tokens"))["tokens"].to_pylist()
    assert after[0] != before[0]
    assert after[1] == before[1]
    versions = store.versions(f"{token_data}/tokens")
    assert [len(versions[f"{n}.parquet"]) for n in ("a.txt", "sub/b.txt", "sub/c.txt")] == [2, 1, 1]
    assert len(versions["_tokzip/codebook.tzc"]) == 1, "the codebook stays"
