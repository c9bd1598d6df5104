"""A worker that does not have the launcher's model fails the job, and says which worker it is and what it lacks."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from jobs import Elsewhere, Job, external
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow


def test_another_model_or_none(
    on_s3: Job,
    elsewhere: Elsewhere,
    prism: None,
    tiny_model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name in ("other", "none"):
        (tmp_path / name).mkdir()
    for path in tiny_model.iterdir():
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    weights = load_file(tiny_model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][7, 7] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    for name, said in {
        "other": f"worker {socket.gethostname()}: model {tiny_model}: another one (",
        "none": f"worker {socket.gethostname()}: model {tiny_model}: cannot be loaded: ",
    }.items():
        seen = {**elsewhere.seen, tiny_model: tmp_path / name}
        with elsewhere.pool(name, seen=seen) as pool:
            assert on_s3.run("--runner=PrismRunner", *external(pool)) == 1
        assert [x[: x.index(said) + len(said)] for x in errors(capfd)] == [f"tokzip run: error: {said}"]
        assert not on_s3.committed("embeddings")


def errors(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What was said, but for rows that are dead letters: with nothing of Beam's, one line."""
    return [x for x in capfd.readouterr().err.splitlines() if "dead letter" not in x]
