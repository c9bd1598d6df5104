"""A Redis server that a test starts and kills."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

import redis

from tokzip_core.cache.redis import RedisLayer


class Server:
    """A redis-server process on a port of its own, without a file on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(["redis-server", *options], cwd=self.folder, stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port)
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert self.process.poll() is None, "redis-server has ended"
                time.sleep(0.05)

    def layer(self, options: str = "") -> RedisLayer:
        """A client that waits as long as a slow machine takes: a server that was killed refuses it at once."""
        return RedisLayer(self.url + options, seconds=300)

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
