"""Files anywhere, by path or fsspec URL: finding, reading and publishing them. Imports fsspec only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs

from tokzip_core.errors import TokzipError

# What stores call the field that changes when a file's content does, strongest first.
_VERSION_FIELDS = (
    "etag",
    "ETag",
    "md5Hash",
    "content_md5",
    "blob_id",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


class InputError(TokzipError):
    """What was asked for cannot be read: nothing matches, or a shard is missing, damaged or of another shape."""


@dataclass(frozen=True)
class FileInfo:
    """A file as its store lists it. `version` changes when the content does (etag, or modification time)."""

    url: str
    size: int
    version: str


def _store(url: str) -> tuple[Any, str]:
    """The file system of the URL and its path there. Raises `InputError` where fsspec has no client for it."""
    if "::" in url:
        raise InputError(f"{url}: chained URLs are not supported")
    try:
        fs, path = url_to_fs(url)
    except (ValueError, ImportError) as e:
        raise InputError(f"{url}: {e}") from e
    return fs, path


def is_local(url: str) -> bool:
    return _store(url)[0].protocol in ("file", ("file", "local"))


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def absolute(url: str) -> str:
    """The URL that means the same file from any working folder (workers have their own)."""
    fs, path = _store(url)
    return os.path.abspath(path) if is_local(url) else str(fs.unstrip_protocol(path))


def _info(fs: Any, detail: dict[str, Any]) -> FileInfo:
    version = next((f"{k}:{detail[k]}" for k in _VERSION_FIELDS if detail.get(k) is not None), "")
    url = detail["name"] if "file" in fs.protocol else fs.unstrip_protocol(detail["name"])
    return FileInfo(url, int(detail["size"] or 0), version)


def find(pattern: str, suffixes: tuple[str, ...]) -> tuple[str, list[FileInfo]]:
    """The files that `pattern` (a file, a folder, or a glob) means, sorted by URL, and the folder they are named from.

    In a folder, files are taken by their suffix; files and folders whose names begin with `_` or `.` are left out,
    as every Parquet reader does. Raises `InputError` when nothing matches.
    """
    fs, path = _store(pattern)
    try:
        fs.invalidate_cache(path)
        if any(c in path for c in "*?[") and not fs.exists(path):
            stem = path[: min(path.find(c) for c in "*?[" if c in path)]
            root = stem.rpartition("/")[0]
            found = list(fs.glob(path, detail=True).values())
            hidden_from = root
        elif fs.isdir(path):
            root = hidden_from = path.rstrip("/")
            found = [d for d in fs.find(path, detail=True).values() if d["name"].endswith(suffixes)]
        else:
            root, hidden_from = path.rpartition("/")[0], None
            found = [fs.info(path)]
    except FileNotFoundError:
        found = []
    except OSError as e:
        raise InputError(f"cannot list {pattern}: {e}") from e
    files = [d for d in (_followed(fs, d) for d in found) if d["type"] == "file"]
    if hidden_from is not None:
        files = [d for d in files if not _hidden(d["name"], hidden_from)]
    if not files:
        raise InputError(f"no file matches {pattern}")
    url_root = root if "file" in fs.protocol else fs.unstrip_protocol(root)
    return url_root.rstrip("/"), sorted((_info(fs, d) for d in files), key=lambda f: f.url)


def _followed(fs: Any, detail: dict[str, Any]) -> dict[str, Any]:
    """What a listed link leads to, under the link's name; a broken link as the file that it should be."""
    if not detail.get("islink"):
        return detail
    try:
        found: dict[str, Any] = fs.info(detail["name"])
        return found
    except FileNotFoundError:
        return {**detail, "type": "file"}


def _hidden(name: str, root: str) -> bool:
    return any(part.startswith(("_", ".")) for part in name[len(root) :].split("/") if part)


def open_read(url: str) -> IO[bytes]:
    fs, path = _store(url)
    handle: IO[bytes] = fs.open(path, "rb")
    return handle


def exists(url: str) -> bool:
    fs, path = _store(url)
    fs.invalidate_cache(path)
    return bool(fs.exists(path))


def read_bytes(url: str) -> bytes:
    fs, path = _store(url)
    data: bytes = fs.cat_file(path)
    return data


def list_files(folder: str, suffix: str) -> list[str]:
    """Every file below `folder` that ends in `suffix`, sorted; none where there is no such folder."""
    fs, path = _store(folder)
    try:
        fs.invalidate_cache(path)  # workers write too: what this process listed before is old
        names = fs.find(path)
    except FileNotFoundError:
        return []
    return sorted(n if "file" in fs.protocol else fs.unstrip_protocol(n) for n in names if n.endswith(suffix))


@contextlib.contextmanager
def scratch_file(output: str) -> Iterator[str]:
    """A path on a local disk to write a file to before `publish`: on the disk of `output` where that is local."""
    if is_local(output):
        folder = os.path.join(absolute(output), "_tokzip", "tmp")
        os.makedirs(folder, exist_ok=True)
    else:
        folder = tempfile.gettempdir()
    path = os.path.join(folder, f"{os.getpid()}-{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def publish(scratch: str, url: str) -> None:
    """Make the finished file at `scratch` (from `scratch_file`) appear at `url`, whole or not at all.

    Local disks: flushed, then renamed. Object stores: one upload, which they show only when complete.
    """
    fs, path = _store(url)
    if not is_local(url):
        fs.put_file(scratch, path)
        return
    with open(scratch, "rb+") as f:
        os.fsync(f.fileno())
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.replace(scratch, path)


def publish_bytes(data: bytes, output: str, url: str) -> None:
    """`publish` for a small file below the folder `output`."""
    with scratch_file(output) as scratch:
        Path(scratch).write_bytes(data)
        publish(scratch, url)


def publish_json(value: Any, output: str, url: str) -> None:
    publish_bytes(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", output, url)


def read_json(url: str) -> dict[str, Any]:
    """A JSON object that `publish_json` wrote; raises FileNotFoundError, or `InputError` for anything else."""
    try:
        found = json.loads(read_bytes(url))
    except ValueError as e:
        raise InputError(f"{url}: not JSON: {e}") from e
    if not isinstance(found, dict):
        raise InputError(f"{url}: a JSON {type(found).__name__}, expected an object")
    return found


def remove(url: str) -> None:
    fs, path = _store(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def sha256_file(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
