"""Processes by machine, number and start: whether one that is known by these still runs; and this one's memory. Imports
nothing of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import resource
import socket
import sys
from pathlib import Path


@functools.cache
def machine() -> str:
    """A short name for this machine since its start, and this container of it: where process ids mean the same."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux: the host's name must do
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def share_arenas() -> None:
    """Have glibc's malloc use one arena. By default threads spread over 8 a core, and what is freed in one serves no
    thread of another: with a runner's threads and those of the model, that is a GB and more. Nothing on other systems,
    or where `MALLOC_ARENA_MAX` is set."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX, mallopt(3)


def peak_memory() -> int:
    """Bytes that were resident at most in this process."""
    with contextlib.suppress(OSError):  # Linux gives a program, as ru_maxrss, its parent's where that was larger
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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
