"""What the runner tests share: a corpus with bad rows of several kinds, jobs over it, and a worker pool elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from far import Far, can_hide
from jobs import Elsewhere, Job
from s3_store import Store


@pytest.fixture(scope="session")
def submitter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The submitter's folder, which no far process sees: `in` is the corpus, of many row groups. Read only."""
    folder = tmp_path_factory.mktemp("submitter")
    texts = [f"row {i}: hello {'again ' * (i % 7)}." for i in range(900)]
    for name, column in {
        "a.parquet": pa.array(texts),
        "sub/b.parquet": pa.array([*texts[:200], None, *texts[:9]]),
        "none.parquet": pa.array([], pa.string()),
    }.items():
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": column}), folder / "in" / name, row_group_size=50)
    (folder / "in" / "c.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(90)) + "oops\n")
    return folder


@pytest.fixture(scope="session")
def undisturbed(submitter: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What Beam's local runner makes of the corpus in this process, from and to local disks."""
    job = Job(str(submitter / "in"), str(tmp_path_factory.mktemp("undisturbed") / "out"), tiny_model)
    assert job.run() == 3, "done, with dead letters"
    return job


@pytest.fixture
def here(submitter: Path, tiny_model: Path, tmp_path: Path) -> Job:
    """From and to local disks."""
    return Job(str(submitter / "in"), str(tmp_path / "out"), tiny_model)


@pytest.fixture(scope="session")
def _put(submitter: Path, store: Store) -> str:
    return store.put(submitter / "in", "runners/in")


@pytest.fixture
def on_s3(_put: str, store: Store, tiny_model: Path, tmp_path: Path) -> Job:
    """From and to the S3 server."""
    return Job(_put, store.url(f"runners/{tmp_path.name}/out"), tiny_model, store)


@pytest.fixture
def elsewhere(submitter: Path, store: Store, tiny_model: Path, tmp_path: Path) -> Elsewhere:
    if not can_hide():
        pytest.skip("no mount namespaces for this user (unshare --mount)")
    (tmp_path / "nothing").mkdir()
    image = tmp_path / "image"
    image.mkdir()
    for path in tiny_model.iterdir():
        (image / path.name).write_bytes(path.read_bytes())
    return Elsewhere(tmp_path / "far", {submitter: tmp_path / "nothing", tiny_model: image}, store.environment)


@pytest.fixture
def pool(elsewhere: Elsewhere, submitter: Path) -> Iterator[Far]:
    """Beam's worker pool, elsewhere."""
    with elsewhere.pool() as started:
        assert not list(Path(f"/proc/{started.process.pid}/root{submitter}").iterdir()), "the corpus is hidden"
        yield started
