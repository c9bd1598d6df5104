"""Files anywhere, by path or fsspec URL: finding, reading and publishing them. Imports fsspec, transient
and processes.

Whatever asks something of a store tries again while its errors are of the kind that passes (see `transient`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem
from fsspec.utils import glob_translate

from pipelines import processes
from pipelines.transient import RetryingFile, is_transient, retried, retry
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

_GLOB = "*?["
_SCRATCH = "tokzip-scratch"


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


@retried
def find(pattern: str, suffixes: tuple[str, ...]) -> tuple[str, list[FileInfo]]:
    """The files that `pattern` (a file, a folder, or a glob) means, sorted by URL, and the folder they are named from.

    In a folder, files are taken by their suffix; files and folders whose names begin with `_` or `.` are left out,
    as every Parquet reader does. Raises `InputError` when nothing matches.
    """
    fs, path = _store(pattern)
    root, hidden_from = path.rpartition("/")[0], None
    try:
        fs.invalidate_cache()  # all of it: of a path, clients forget its parents, not the folders below
        if _is_glob(fs, path):
            root = hidden_from = _glob_root(path)
            found = _glob(fs, path)
        elif fs.isdir(path) or (detail := fs.info(path))["type"] == "directory":  # `isdir` takes an error for "no"
            root = hidden_from = path.rstrip("/")
            found = [d for d in _all_below(fs, path) if d["name"].endswith(suffixes)]
        else:
            found = [detail]
    except FileNotFoundError:
        found, hidden_from = [], None
    except OSError as e:
        if is_transient(e):
            raise
        raise InputError(f"cannot list {pattern}: {e}") from e
    files = [d for d in (_followed(fs, d) for d in found) if d["type"] == "file"]
    if hidden_from is not None:
        files = [d for d in files if not _hidden(d["name"], hidden_from)]
    if not files:
        raise InputError(f"no file matches {pattern}")
    url_root = root if "file" in fs.protocol else fs.unstrip_protocol(root)
    return url_root.rstrip("/"), sorted((_info(fs, d) for d in files), key=lambda f: f.url)


def would_find(pattern: str, suffixes: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether `find` would give the file of that URL, if it were there."""
    fs, path = _store(pattern)
    url = absolute(pattern)
    if _is_glob(fs, path):
        matches, root = re.compile(glob_translate(url)).match, _glob_root(url)
        return lambda u: bool(matches(u)) and not _hidden(u, root)
    below = url.rstrip("/") + "/"
    return lambda u: u.startswith(below) and u.endswith(suffixes) and not _hidden(u, below)


def _is_glob(fs: Any, path: str) -> bool:
    return any(c in path for c in _GLOB) and not fs.exists(path)


def _glob_root(path: str) -> str:
    return path[: min(path.find(c) for c in _GLOB if c in path)].rpartition("/")[0]


def _glob(fs: Any, path: str) -> list[dict[str, Any]]:
    """The files that the pattern matches (and perhaps folders)."""
    if type(fs).find is not AbstractFileSystem.find:
        return list(fs.glob(path, detail=True).values())
    root, matches = _glob_root(path), re.compile(glob_translate(path)).match
    depth = sys.maxsize if "**" in path else path[len(root) :].strip("/").count("/") + 1
    return [d for d in _all_below(fs, root or "/", depth) if matches(d["name"])]


def _all_below(fs: Any, folder: str, depth: int = sys.maxsize) -> list[dict[str, Any]]:
    """Every file below the folder. Where fsspec would walk, this does: its walk takes a folder that cannot be listed
    for an empty one, whatever it is asked to do on errors."""
    if type(fs).find is not AbstractFileSystem.find:
        return list(fs.find(folder, detail=True).values())
    found, folders = [], [(folder, 1)]
    while folders:
        path, level = folders.pop()
        try:
            listed = fs.ls(path, detail=True)
        except FileNotFoundError:
            if level == 1:
                raise
            continue  # removed since it was listed
        for d in listed:
            if d["type"] != "directory":
                found.append(d)
            elif level < depth:
                folders.append((d["name"], level + 1))
    return found


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
    if is_local(url):
        return Path(path).open("rb")

    def open_file(again: bool) -> tuple[IO[bytes], FileInfo]:
        if again:
            fs.invalidate_cache(path)  # else clients say again what they knew at first
        file = fs.open(path, "rb")
        return file, _info(fs, getattr(file, "details", None) or fs.info(path))

    return RetryingFile(url, open_file)  # type: ignore[return-value]


@retried
def is_gone(url: str) -> bool:
    """Whether its store says that there is no such file; raises where it says anything else but that there is one."""
    fs, path = _store(url)
    fs.invalidate_cache(path)
    try:
        fs.info(path)
    except (FileNotFoundError, NotADirectoryError):  # the latter: below a file, as if that were a folder
        return True
    return False


def exists(url: str) -> bool:
    """Not fsspec's `exists`, which takes every error for "no"."""
    return not is_gone(url)


@retried
def read_bytes(url: str) -> bytes:
    fs, path = _store(url)
    data: bytes = fs.cat_file(path)
    return data


@retried
def list_infos(folder: str, suffix: str) -> list[FileInfo]:
    """Every file below `folder` that ends in `suffix`, sorted by URL; none where there is no such folder."""
    fs, path = _store(folder)
    try:
        fs.invalidate_cache()  # workers write too: what this process listed before is old
        found = [_info(fs, d) for d in _all_below(fs, path) if d["name"].endswith(suffix)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda f: f.url)


def list_files(folder: str, suffix: str) -> list[str]:
    """The URLs of `list_infos`."""
    return [f.url for f in list_infos(folder, suffix)]


def _scratch_folder(output: str) -> str:
    if is_local(output):
        return os.path.join(absolute(output), "_tokzip", "tmp")
    return tempfile.gettempdir()


@contextlib.contextmanager
def scratch_file(output: str) -> Iterator[str]:
    """A path on a local disk to write a file to before `publish`: on the disk of `output` where that is local."""
    folder = _scratch_folder(output)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{_SCRATCH}-{processes.machine()}-{os.getpid()}-{uuid.uuid4().hex}")
    try:
        yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def clear_scratch(output: str) -> None:
    """Remove what dead processes left of scratch files, and the folder for them in a local output if it is empty.

    Of another machine's processes (a shared disk) only what has not been written to for an hour.
    """
    folder = _scratch_folder(output)
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        kind, machine, pid, _ = (*name.rsplit("-", 3), *[""] * 3)[:4]
        path = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            if kind == _SCRATCH and machine == processes.machine():
                dead = not processes.is_alive(int(pid))
            else:
                dead = is_local(output) and time.time() - os.path.getmtime(path) > 3600
            if dead:
                os.unlink(path)
    if is_local(output):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def publish(scratch: str, url: str) -> None:
    """Make the finished file at `scratch` (from `scratch_file`) appear at `url`, whole or not at all.

    Local disks: flushed, then renamed. Object stores: one upload, which they show only when complete.
    """
    fs, path = _store(url)
    if not is_local(url):
        retry(fs.put_file, scratch, path, what=url)
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


@retried
def remove(url: str) -> None:
    fs, path = _store(url)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def sha256_file(path: str) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
