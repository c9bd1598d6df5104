"""The part of the Hugging Face hub's HTTP API that reading takes, over folders on loopback. Standard library only.

As the hub does it: names from before namespaces redirect to their place in one; large files redirect to another
host; a file has an ETag (SHA-256 of a large one, git's blob id of a small one); the commit stands in
every answer; what is missing says in `X-Error-Code` whether it is the repository, the revision or the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_LARGE = (".parquet", ".safetensors")
_API = re.compile(r"/api/(models|datasets)/(?P<repo>[^/]+(/[^/]+)?)(/(?P<what>revision|tree|paths-info)/(?P<rest>.+))?")
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+(/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """`repositories`: folder by "models/NAME" or "datasets/NAME"; `moved`: new names by old ones."""

    repositories: dict[str, Path]
    moved: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "METHOD path" of every one, in order
    endpoint: str = ""

    def commit(self, repository: str) -> str:
        """The hash that names the state of a repository; it changes with its files."""
        folder, digest = self.repositories[repository], hashlib.sha1()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder)} {blob_id(path.read_bytes())}\n".encode())
        return digest.hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub on a free loopback port; its address is in `endpoint`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        if path.startswith("/large/"):
            self._send_file(Path("/" + path.removeprefix("/large/")), {})
        elif found := _API.fullmatch(path):
            self._api(found, path, {**parse_qs(url.query), **parse_qs(body.decode())})
        elif found := _FILE.fullmatch(path):
            self._resolve(found, path)
        else:
            self._error("EntryNotFound")

    do_HEAD = do_POST = do_GET

    def _repository(self, kind: str, repo: str, path: str) -> tuple[str, Path] | None:
        """The repository's name and folder; where there is none, the answer is sent."""
        if new := self.hub.moved.get(repo):
            self._send(307, b"", {"Location": path.replace(repo, new, 1)})
            return None
        name = f"{kind}/{repo}"
        if name not in self.hub.repositories:
            self._error("RepoNotFound")
            return None
        return name, self.hub.repositories[name]

    def _api(self, found: re.Match[str], path: str, query: dict[str, list[str]]) -> None:
        if (repository := self._repository(found[1], found["repo"], path)) is None:
            return
        name, folder = repository
        commit = self.hub.commit(name)
        revision, _, inside = (found["rest"] or "main").partition("/")
        if revision not in ("main", commit):
            self._error("RevisionNotFound")
        elif found["what"] in (None, "revision"):
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            siblings = [{"rfilename": str(p.relative_to(folder))} for p in files]
            self._send_json({"id": found["repo"], "sha": commit, "siblings": siblings, "private": False, "tags": []})
        elif found["what"] == "paths-info":
            paths = [folder / p for p in query.get("paths", [])]
            self._send_json([_described(p, folder) for p in paths if p.exists()])
        elif not (folder / inside).is_dir():
            self._error("EntryNotFound")
        else:
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            listed = (folder / inside).rglob("*") if deep else (folder / inside).iterdir()
            self._send_json([_described(p, folder) for p in sorted(listed)])

    def _resolve(self, found: re.Match[str], path: str) -> None:
        kind = "datasets" if found["kind"] else "models"
        if (repository := self._repository(kind, found["repo"], path)) is None:
            return
        name, folder = repository
        commit, file = self.hub.commit(name), folder / found["path"]
        if found["revision"] not in ("main", commit):
            self._error("RevisionNotFound")
        elif not file.is_file():
            self._error("EntryNotFound", {"X-Repo-Commit": commit})
        elif file.suffix in _LARGE:
            data = file.read_bytes()
            location = f"http://localhost:{self.server.server_port}/large{file.resolve()}"
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
            self._send(302, b"", {"Location": location, "X-Repo-Commit": commit, **linked})
        else:
            self._send_file(file, {"X-Repo-Commit": commit, "ETag": f'"{blob_id(file.read_bytes())}"'})

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        data, status = file.read_bytes(), 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
            data, status = data[first : last + 1], 206
        self._send(status, data, {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Nothing: `Hub.requests` has it."""


def _described(path: Path, folder: Path) -> dict[str, Any]:
    name = str(path.relative_to(folder))
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    data = path.read_bytes()
    described = {"type": "file", "path": name, "oid": blob_id(data), "size": len(data)}
    if path.suffix in _LARGE:
        described["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return described
