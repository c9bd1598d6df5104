"""Both stages as one job, and where else it may run: what the tests of every runner call. Imports pipelines.cli."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from far import Far, far
from s3_store import Store

from pipelines import cli

JOB_SERVER = "apache_beam.runners.portability.local_job_service_main"
WORKER_POOL = "apache_beam.runners.worker.worker_pool_main"


@dataclass
class Job:
    """Both stages over the corpus, here or on the S3 server, as they are called each time."""

    input: str
    output: str
    model: Path
    store: Store | None = None
    options: list[str] = field(default_factory=list)

    def run(self, *more: str) -> int:
        """In this process, which has imported torch and Beam; the exit code."""
        named = ["--input", self.input, "--output", self.output, "--tokenizer", self.model, "--model", self.model]
        small = ["--split-bytes", "2KB", "--train-bytes", "60KB", "--cache", "none", "--no-progress"]
        return cli.main([str(a) for a in ["run", *named, *small, *self.options, *more]])

    def names(self) -> set[str]:
        """The paths of the files below the output, which a run may be writing and deleting."""
        if self.store:
            return self.store.names(self.output.removeprefix(self.store.url("")))
        return {str(p.relative_to(self.output)) for p in Path(self.output).rglob("*") if p.is_file()}

    def files(self) -> dict[str, bytes]:
        if self.store:
            return self.store.objects(self.output.removeprefix(self.store.url("")))
        return {name: Path(self.output, name).read_bytes() for name in self.names()}

    def committed(self, stage: str) -> set[str]:
        """The names of the splits with a manifest entry."""
        return {n for n in self.names() if n.startswith(f"{stage}/_tokzip/manifest/")}

    def made(self) -> dict[str, Any]:
        """All that may not differ: every file but timings, the rows of dead letters for the files of them."""
        left_out = ("/manifest/", "summary.json")
        found: dict[str, Any] = {n: b for n, b in self.files().items() if not any(x in n for x in left_out)}
        for name in (n for n in found if "/dead_letters/" in n):  # they name the shard by its URL
            found[name] = pq.read_table(io.BytesIO(found[name])).drop_columns("shard").to_pylist()
        return found


@dataclass
class Elsewhere:
    """Starts processes that do not see the submitter's folder, and see another copy of the model."""

    folder: Path
    seen: dict[Path, Path]
    env: dict[str, str]

    def start(self, name: str, module: str, *argv: str, **other: Any) -> Any:
        """`far` in a new folder; `seen` replaces that of this object."""
        return far(self.folder / name, other.get("seen", self.seen), self.env, module, *argv)

    def pool(self, name: str = "pool", **other: Any) -> Any:
        return self.start(name, WORKER_POOL, "--service_port={port}", **other)


def external(pool: Far) -> list[str]:
    return ["--environment_type=EXTERNAL", f"--environment_config={pool.address}"]
