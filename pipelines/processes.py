"""Processes by machine, number and start: whether one that is known by these still runs. Imports nothing of ours."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path


@functools.cache
def machine() -> str:
    """A short name for this machine since its start, and this container of it: where process ids mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux: the host's name must do
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def started(pid: int) -> str:
    """When the process was started, in the system's own words; empty where it is not there or it cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # a zombie runs no more; field 22 of proc_pid_stat(5)


def is_alive(pid: int, since: str = "") -> bool:
    """Whether process `pid` of this machine runs, and is the one that was `started` at `since`, where that is known."""
    if Path("/proc/self/stat").exists():
        now = started(pid)
        return bool(now) and since in ("", now)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
