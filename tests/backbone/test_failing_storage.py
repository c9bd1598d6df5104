"""A store that fails one call in ten: what is tried again, what is not, and both stages in spite of it."""

from __future__ import annotations

import errno
import io
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from shards import parquet

from pipelines import reading, splits, storage, transient
from pipelines.stage import Stats
from pipelines.storage import InputError
from pipelines.transient import FileChangedError, RetryingFile, StorageError, is_transient, retry

Command = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient, "FIRST_DELAY", 0.0001)


# ---- which errors pass


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class HttpError(Exception):
    """As gcsfs's, and with `status` as aiohttp's."""

    def __init__(self, code: Any = None, status: Any = None) -> None:
        super().__init__()
        self.code, self.status = code, status


class ServerDisconnectedError(type("ClientConnectionError", (Exception,), {})):  # type: ignore[misc]
    """As aiohttp's."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PASSING = [
    ConnectionResetError(),
    TimeoutError(),
    fsspec.exceptions.FSTimeoutError(),
    BrokenPipeError(),
    OSError(errno.EIO, "input/output error"),
    OSError(errno.ESTALE, "stale handle"),
    ClientError(503, "SlowDown"),
    ClientError(400, "RequestTimeout"),
    HttpError(code=429),
    HttpError(code="503"),
    HttpError(status=500),
    ServerDisconnectedError(),
    caused(OSError("upload failed"), ClientError(500, "InternalError")),
]
STAYING = [
    FileNotFoundError(),
    PermissionError(errno.EACCES, "denied"),
    IsADirectoryError(),
    OSError(errno.ENOSPC, "disk full"),
    OSError("footer is damaged"),
    ValueError("503"),
    KeyError("status"),
    ClientError(404, "NoSuchKey"),
    ClientError(403, "AccessDenied"),
    HttpError(code=404),
    HttpError(status=412),
    caused(FileNotFoundError(), HttpError(code=503)),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_errors_that_pass_are_tried_again(error: Exception) -> None:
    assert is_transient(error)
    calls = itertools.count()

    def call(url: str) -> str:
        if next(calls) < transient.TRIES - 1:
            raise error
        return url

    assert retry(call, "s3://b/x") == "s3://b/x"


@pytest.mark.parametrize("error", STAYING, ids=repr)
def test_errors_that_stay_are_raised_at_once(error: Exception) -> None:
    calls = []

    def call(url: str) -> None:
        calls.append(url)
        raise error

    with pytest.raises(type(error)) as e:
        retry(call, "s3://b/x")
    assert e.value is error
    assert len(calls) == 1


def test_a_store_that_keeps_failing_is_named() -> None:
    def call(url: str) -> None:
        raise ConnectionResetError("by peer")

    with pytest.raises(StorageError, match=rf"^s3://b/x: the store failed {transient.TRIES} times, .*by peer"):
        retry(call, "s3://b/x")


def test_pauses_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(transient, "FIRST_DELAY", 1.0)
    monkeypatch.setattr("time.sleep", paused.append)
    with pytest.raises(StorageError):
        retry(lambda url: (_ for _ in ()).throw(TimeoutError()), "u")
    assert len(paused) == transient.TRIES - 1
    assert all(2**i <= p <= 1.5 * 2**i for i, p in enumerate(paused))
    assert len({p / 2**i for i, p in enumerate(paused)}) > 1


def test_a_file_is_read_on_from_where_it_failed() -> None:
    data = bytes(range(256)) * 40
    fails = itertools.cycle([False, True, False])

    class Failing(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            found = super().read(n)
            if next(fails):
                raise ConnectionResetError
            return found

    with RetryingFile("u", lambda again: (Failing(data), 1)) as f:
        assert b"".join(iter(lambda: f.read(1000), b"")) == data
        f.seek(-10, io.SEEK_END)
        assert f.tell() == len(data) - 10
        assert f.read() == data[-10:]
        f.seek(5)
        f.seek(5, io.SEEK_CUR)
        assert f.read(3) == data[10:13]
        buffer = bytearray(7)
        assert (f.readinto(buffer), bytes(buffer)) == (7, data[13:20])


def test_a_file_that_is_another_when_opened_again_is_an_error() -> None:
    class Failing(io.BytesIO):
        def read(self, n: int | None = -1) -> bytes:
            if self.tell() == 4:
                raise ConnectionResetError
            return super().read(n)

    versions = iter([("first", "etag 1"), ("other", "etag 2"), ("other", "etag 2")])

    def open_file(again: bool) -> tuple[Failing, str]:
        text, version = next(versions)
        assert again == (text != "first")
        return Failing(text.encode() * 3), version

    with RetryingFile("s3://b/x", open_file) as f:
        assert f.read(4) == b"firs"
        for _ in range(2):
            with pytest.raises(FileChangedError, match="s3://b/x: has changed while it was read"):
                f.read(4)


# ---- a store that fails on purpose


class FlakyFileSystem(MemoryFileSystem):
    """The memory store, of which every tenth call fails, in one of several ways. Reads fail in their middle."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 - as the class above has it
    pseudo_dirs = [""]  # noqa: RUF012
    calls = itertools.count(1)
    failed = 0
    every = 10
    within = threading.local()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("flaky://"))

    def open(self, path: str, mode: str = "rb", **kw: Any) -> Any:
        file = _failing(MemoryFileSystem.open)(self, path, mode, **kw)
        if mode != "rb":
            return file
        return _FlakyFile(file.getvalue())


class _FlakyFile(io.BytesIO):
    def read(self, n: int | None = -1) -> bytes:
        found = super().read(n)
        _perhaps_fail()
        return found


def _perhaps_fail() -> None:
    n = next(FlakyFileSystem.calls)
    if n % FlakyFileSystem.every == 0:
        FlakyFileSystem.failed += 1
        kinds = [
            ConnectionResetError("by peer"),
            TimeoutError("no answer"),
            HttpError(code=503),
            OSError(errno.EIO, "?"),
        ]
        raise kinds[n // FlakyFileSystem.every % len(kinds)]


def _failing(real: Any) -> Any:
    """The call, failing before or after its work is done; calls within it are the store's own."""

    def call(*args: Any, **kw: Any) -> Any:
        if getattr(FlakyFileSystem.within, "yes", False):
            return real(*args, **kw)
        FlakyFileSystem.within.yes = True
        try:
            before = next(FlakyFileSystem.calls) % 2
            if before:
                _perhaps_fail()
            found = real(*args, **kw)
            if not before:
                _perhaps_fail()
            return found
        finally:
            FlakyFileSystem.within.yes = False

    return call


for _name in ("cat_file", "put_file", "info", "find", "glob", "rm_file", "ls"):
    setattr(FlakyFileSystem, _name, _failing(getattr(MemoryFileSystem, _name)))


@pytest.fixture
def flaky() -> FlakyFileSystem:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.store.clear()
    FlakyFileSystem.failed = 0
    FlakyFileSystem.every = 10
    return fsspec.filesystem("flaky", skip_instance_cache=True)


def corpus(folder: Path) -> Path:
    for i in range(6):
        texts = [f"hello {i} {j} " + "word " * (j % 9) for j in range(60)]
        parquet(folder / f"{i // 2}" / f"{i}.parquet", [*texts, None], row_group_size=20)
    (folder / "lines.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(40)) + "oops\n")
    return folder


@pytest.mark.slow
def test_both_stages_end_in_the_same_bytes(
    tmp_path: Path, flaky: FlakyFileSystem, command: Command, tiny_model: Path
) -> None:
    corpus(tmp_path / "in")
    FlakyFileSystem.every = 1 << 60
    for path in (tmp_path / "in").rglob("*.*"):
        flaky.pipe_file(f"/bucket/in/{path.relative_to(tmp_path / 'in')}", path.read_bytes())
    FlakyFileSystem.every = 10
    more = ["--tokenizer", tiny_model, "--model", tiny_model, "--cache", "none", "--split-bytes", "700"]
    assert command("run", "--input", tmp_path / "in", "--output", tmp_path / "out", *more)[0] == 3
    code, printed = command("run", "--input", "flaky://bucket/in", "--output", "flaky://bucket/out", *more)
    assert code == 3, printed
    assert FlakyFileSystem.failed > 20
    FlakyFileSystem.every = 1 << 60
    here = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*.*") if p.is_file()
    }
    there = {n.removeprefix("/bucket/out/"): flaky.cat_file(n) for n in flaky.find("/bucket/out")}
    assert here.keys() == there.keys()
    assert sum("manifest" in n for n in here) > 20
    for name, data in here.items():
        if "manifest/" not in name and not name.endswith("summary.json") and "dead_letters" not in name:
            assert there[name] == data, name
    assert command("verify", "flaky://bucket/out", "--input", "flaky://bucket/in")[0] == 0
    assert command("inspect", "flaky://bucket/out/tokens")[0] == 0
    code, printed = command("run", "--input", "flaky://bucket/in", "--output", "flaky://bucket/out", *more)
    assert code == 3
    assert printed.count("splits done now          0") == 2


def test_a_store_that_is_down_is_neither_a_bad_shard_nor_an_empty_folder(
    tmp_path: Path, flaky: FlakyFileSystem, command: Command, tokenizer_dir: Path
) -> None:
    data = parquet(tmp_path / "a.parquet", ["hello"]).read_bytes()
    FlakyFileSystem.every = 1 << 60
    flaky.pipe_file("/bucket/in/a.parquet", data)
    argv = ["compress", "--output", tmp_path / "out", "--tokenizer", tokenizer_dir, "--on-bad-shard", "skip"]
    FlakyFileSystem.every = 1
    code, printed = command(*argv, "--input", "flaky://bucket/in/*")
    assert code == 1
    assert "bucket/in/*: the store failed 6 times" in printed
    with pytest.raises(StorageError, match=r"a\.parquet"), reading.open_shard("flaky://bucket/in/a.parquet"):
        pass
    with pytest.raises(StorageError):
        storage.exists("flaky://bucket/in/a.parquet")
    assert not (tmp_path / "out").exists()
    FlakyFileSystem.every = 1 << 60
    assert command(*argv, "--input", "flaky://bucket/in/*")[0] == 0


def test_a_shard_that_is_replaced_between_two_reads_is_a_bad_shard_not_a_mix_of_two(
    tmp_path: Path, flaky: FlakyFileSystem
) -> None:
    FlakyFileSystem.every = 1 << 60
    old, new = (parquet(tmp_path / n, [n * 100_000 + str(i) for i in range(40)], 20).read_bytes() for n in "ab")
    assert len(old) == len(new)
    flaky.pipe_file("/bucket/in/x.parquet", old)
    ((name, f),) = splits.find_shards(["flaky://bucket/in"])
    (split,) = splits.plan_shard(name, f, lambda _: ["text"], 1 << 30)
    with reading.open_shard(split.url) as reader:
        flaky.pipe_file("/bucket/in/x.parquet", new)
        FlakyFileSystem.every = next(FlakyFileSystem.calls) + 1  # the next call, which is a read, fails
        with pytest.raises(InputError, match=r"x\.parquet: has changed while it was read"):
            list(splits.blocks(split, reader, ["text"], Stats()))


def test_what_is_missing_is_missing_at_once(flaky: FlakyFileSystem) -> None:
    with pytest.raises(InputError, match="no such file"), reading.open_shard("flaky://bucket/none.parquet"):
        pass
    assert not storage.exists("flaky://bucket/none.parquet")
