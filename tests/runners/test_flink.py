"""Both stages on a Flink cluster of three processes, where there is a Beam job server for Flink: the same bytes.

    pip install 'apache-flink-libraries==2.2.*'
    export TOKZIP_FLINK_JOB_SERVER_JAR=beam-runners-flink-2.2-job-server-2.77.0.jar
    python -m pytest tests/runners/test_flink.py

The jar's name has the version of Flink that the cluster must have.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from far import Far
from flink_cluster import cluster, flink_home
from jobs import Job, external

pytestmark = pytest.mark.slow


def test_a_flink_cluster(on_s3: Job, undisturbed: Job, pool: Far, tmp_path: Path) -> None:
    jar, flink = os.environ.get("TOKZIP_FLINK_JOB_SERVER_JAR"), flink_home()
    if not jar:
        pytest.skip("no Beam job server for Flink: set TOKZIP_FLINK_JOB_SERVER_JAR (PyPI has none)")
    assert flink, "no Flink: install apache-flink-libraries, or set TOKZIP_FLINK_HOME to a folder with its lib"
    with cluster(flink, tmp_path / "flink") as master:
        named = ["--runner=FlinkRunner", f"--flink_master={master}", f"--flink_job_server_jar={jar}"]
        assert on_s3.run(*named, *external(pool), "--parallelism=2") == 3
    assert on_s3.made() == undisturbed.made()
