"""A Redis server for the tests that need one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from redis_process import Server


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not shutil.which("redis-server"):
        if os.environ.get("TOKZIP_REQUIRE_REDIS"):
            pytest.fail("TOKZIP_REQUIRE_REDIS is set, and there is no redis-server on PATH")
        pytest.skip("there is no redis-server on PATH (apt-get install redis-server)")
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()
