"""Processes that see none of the submitter's folders, as on another machine: Beam's worker pool and its job server.

Each runs in a mount namespace of its own, in which other folders lie over those that it must not see, with its own
home, temporary folder and working directory. Imports nothing of tokzip: it is for the tests.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PRIVATE = ["unshare", *(["--map-root-user"] if os.geteuid() else []), "--mount"]
_MOUNT = 'while [ "$1" != -- ]; do mount --bind "$2" "$1" || exit 9; shift 2; done; shift; exec "$@"'


def can_hide() -> bool:
    """Whether this user may make mount namespaces here."""
    try:
        return subprocess.run([*_PRIVATE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@dataclass
class Far:
    """A process and its children; `port` is where it listens, `tmp` its temporary folder, `log` its output."""

    process: subprocess.Popen[bytes]
    port: int
    tmp: Path
    log: Path

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"


@contextmanager
def far(home: Path, seen: Mapping[Path, Path], env: Mapping[str, str], module: str, *argv: str) -> Iterator[Far]:
    """`python -m module argv…` on "another machine", with {port} in argv replaced by one that is free.

    `home` is a new folder for all that is its own; each folder in `seen` is replaced by another one there. Of the
    environment it gets `env` alone. Ends with all its children.
    """
    tmp = home / "tmp"
    tmp.mkdir(parents=True)
    port = free_port()
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"  # a pool runs `python` by name
    mine = {"HOME": str(home), "TMPDIR": str(tmp), "PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    mine["OMP_WAIT_POLICY"] = os.environ["OMP_WAIT_POLICY"]
    mounts = [str(p) for pair in seen.items() for p in pair]
    command = ["python", "-m", module, *(a.replace("{port}", str(port)) for a in argv)]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            [*_PRIVATE, "sh", "-c", _MOUNT, "sh", *mounts, "--", *command],
            cwd=home,
            env={**mine, **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or _listens(port), "it listens")
        assert process.poll() is None, (home / "log").read_text()
        yield Far(process, port, tmp, home / "log")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        port: int = s.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Raises AssertionError where it takes longer than any machine should need."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{seconds} s, and still not: {what}"
        time.sleep(0.005)
