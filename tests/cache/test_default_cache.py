"""The cache that `tokzip embed` has where none is asked for."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from pipelines.embed import default_cache
from pipelines.options import Invocation


def test_a_home_that_cannot_be_written_to_leaves_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    invocation = Invocation(Namespace(), [])
    assert default_cache(invocation) == f"memory:256MB,disk:{tmp_path}/home/tokzip:20GB"
    assert capsys.readouterr().err == ""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert default_cache(invocation) == "memory:256MB"
    assert "no cache on disk" in capsys.readouterr().err
