"""An S3 server (moto's, over HTTP on loopback) with one versioned bucket, and a look at it that is not tokzip's own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "corpus"
_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Store:
    """The bucket keeps every version of an object: how often each was written can be counted.

    takes: asked with the key before an object is written, of one at a time, while the writer waits: whether it may be.
    """

    endpoint: str
    client: Any
    takes: Callable[[str], bool] = lambda key: True

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets for a store that is not Amazon's: s3fs reads it as every AWS client does."""
        return {**_KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def url(self, path: str) -> str:
        return f"s3://{BUCKET}/{path}"

    def put(self, folder: Path, prefix: str) -> str:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.write(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return self.url(prefix)

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def versions(self, prefix: str) -> dict[str, list[str]]:
        """The ETags of every version of every object below the prefix, by the object's path below it."""
        found: dict[str, list[str]] = {}
        for page in self.client.get_paginator("list_object_versions").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            for version in page.get("Versions", []):
                found.setdefault(version["Key"].removeprefix(f"{prefix}/"), []).append(version["ETag"])
        return found

    def names(self, prefix: str) -> set[str]:
        """The paths below the prefix of what stands there now."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return {item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])}

    def objects(self, prefix: str) -> dict[str, bytes]:
        """What stands below the prefix, by path, when nobody writes there."""
        read = self.client.get_object
        return {n: read(Bucket=BUCKET, Key=f"{prefix}/{n}")["Body"].read() for n in self.names(prefix)}


@contextmanager
def serve() -> Iterator[Store]:
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line a request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=_KEYS["AWS_DEFAULT_REGION"],
        )
        client.create_bucket(Bucket=BUCKET)
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        store = Store(endpoint, client)
        assert server._server is not None
        server._server.app = _asking(store, server._server.app)
        yield store
    finally:
        server.stop()


def _asking(store: Store, app: Any) -> Any:
    """The application, with `store.takes` asked before each object is written."""
    one_at_a_time = threading.Lock()

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT":
            with one_at_a_time:
                taken = store.takes(environ["PATH_INFO"].removeprefix(f"/{BUCKET}/"))
            if not taken:
                start_response("503 Slow Down", [("Content-Length", "0")])
                return []
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return call
