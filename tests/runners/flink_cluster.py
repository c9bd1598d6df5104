"""A Flink cluster of one JobManager and two TaskManagers, from the jars of PyPI's `apache-flink-libraries`.

Started without Flink's scripts (the package has none): the memory that they would work out is set here, piece by piece.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from urllib.request import urlopen

from far import free_port, wait_until

_JOB_MANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
_TASK_MANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
# What Flink's own configuration opens to its serializers on Java 17.
_PACKAGES = "lang net io nio lang.reflect text time util util.concurrent util.concurrent.atomic util.concurrent.locks"
_OPEN = [f"--add-opens=java.base/java.{p}=ALL-UNNAMED" for p in _PACKAGES.split()]


def flink_home() -> Path | None:
    """The folder with Flink's `lib`: of `TOKZIP_FLINK_HOME`, or of the installed package; None where there is none."""
    if home := os.environ.get("TOKZIP_FLINK_HOME"):
        return Path(home)
    try:
        return Path(str(metadata.distribution("apache-flink-libraries").locate_file("pyflink")))
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def cluster(flink: Path, folder: Path) -> Iterator[str]:
    """The REST address of a cluster with one slot in each TaskManager, once both are registered; it lives in `folder`.

    Raises AssertionError, with the logs, where a process ends before.
    """
    rest = free_port()
    memory = {"task.heap": 128, "task.off-heap": 0, "framework.heap": 64, "framework.off-heap": 64}
    memory |= {"managed": 64, "jvm-metaspace": 192}
    settings = {
        "jobmanager.rpc.address": "127.0.0.1",
        "jobmanager.rpc.port": free_port(),
        "rest.address": "127.0.0.1",
        "rest.port": rest,
        "taskmanager.host": "127.0.0.1",
        "taskmanager.numberOfTaskSlots": 1,
        "taskmanager.cpu.cores": 1,
        "io.tmp.dirs": folder / "tmp",
        **{f"taskmanager.memory.{name}.size": f"{size}mb" for name, size in memory.items()},
        **{f"taskmanager.memory.{n}.{end}": "64mb" for n in ("network", "jvm-overhead") for end in ("min", "max")},
    }
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    java = shutil.which("java")
    assert java, "Flink needs Java (11 or 17) on PATH"
    started: list[subprocess.Popen[bytes]] = []
    try:
        for i, main in enumerate([_JOB_MANAGER, _TASK_MANAGER, _TASK_MANAGER]):
            command = [java, "-Xmx512m", *_OPEN, "-cp", f"{flink / 'lib'}/*", main, "--configDir", folder / "conf"]
            with open(folder / f"{i}.log", "wb") as log:
                started.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT))

        def registered() -> bool:
            logs = "\n".join((folder / f"{i}.log").read_text()[-3000:] for i in range(3))
            assert all(p.poll() is None for p in started), logs
            return _overview(rest).get("slots-total") == 2

        wait_until(registered, "two TaskManagers have registered their slots")
        yield f"127.0.0.1:{rest}"
    finally:
        for p in started:
            p.kill()
        for p in started:
            p.wait()


def _overview(rest: int) -> dict[str, int]:
    try:
        with urlopen(f"http://127.0.0.1:{rest}/overview", timeout=5) as answer:
            found: dict[str, int] = json.load(answer)
            return found
    except OSError:
        return {}
