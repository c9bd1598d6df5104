"""One run at a time on an output folder or URL. Imports storage, processes and transient.

No store offers a lock that works on all of them, so this needs three things only: a file appears whole, what was
written is seen by whoever lists later, and names can be made unique. A run that wants the output writes a claim
under a name of its own, then lists all claims. Of two runs, whichever wrote second sees the other's: so they never
both find themselves alone, and who is not alone takes its claim back (and tries again a few times, after a random
pause, lest two that came at once both give up). While it holds the output, a run writes its claim anew every
`BEAT` seconds. A claim whose process is dead on this machine counts for nothing at once; one of another machine
when it has not been renewed for `EXPIRY` seconds by its own clock, nor while it was watched for two beats.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipelines import processes, storage
from tokzip_core.errors import TokzipError

BEAT = 15.0
EXPIRY = 120.0
_TRIES = 5  # to find oneself alone, before the others are believed to stay
_POLL = 5.0  # seconds between looks, for who waits

Claim = dict[str, Any]


class OutputInUseError(TokzipError):
    """Another run is at work on the same output."""


class OutputLostError(TokzipError):
    """Another run took the output, since this one showed no sign of life for too long."""


class Lock:
    """A held output. `check` raises `OutputLostError` once another run has taken it."""

    def __init__(self, output: str) -> None:
        self.output = output
        self.folder = storage.join(output, "_tokzip", "locks")
        self.url = storage.join(self.folder, f"{uuid.uuid4().hex}.json")
        self.claim: Claim = {
            "host": socket.gethostname(),
            "machine": processes.machine(),
            "pid": os.getpid(),
            "process_started": processes.started(os.getpid()),
            "started": time.time(),
        }
        self.lost = False

    def write(self) -> None:
        for _ in range(10):  # who lets the output go removes empty folders, perhaps just now this claim's
            with contextlib.suppress(FileNotFoundError):
                storage.publish_json({**self.claim, "beat": time.time()}, self.output, self.url)
                return
        raise OutputInUseError(f"{self.output}: its folder is removed again and again")

    def others(self) -> list[Claim]:
        """The claims of other live runs; those of dead ones are removed."""
        found = []
        for url in storage.list_files(self.folder, ".json"):
            if url == self.url:
                continue
            claim = _read(url)
            if claim and _is_dead(url, claim):
                storage.remove(url)
            elif claim:
                found.append(claim)
        return found

    def beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            try:
                if storage.is_gone(self.url):
                    self.lost = True
                    return
                self.write()
            except Exception as e:
                logging.getLogger(__name__).warning("%s: cannot renew the claim: %s", self.url, e)

    def check(self) -> None:
        if self.lost:
            raise OutputLostError(
                f"{self.output}: another run took over, since this one was not heard of for {EXPIRY:.0f} s. What is "
                "committed stays"
            )


@contextlib.contextmanager
def held(output: str, wait: bool = False) -> Iterator[Lock]:
    """Hold the output, and clear what dead runs left of temporary files there.

    Raises `OutputInUseError` naming host, process and start of the run that holds it; or waits until it ends.
    """
    new = storage.is_local(output) and not os.path.exists(output)
    lock = Lock(output)
    try:
        _acquire(lock, wait)
        storage.clear_scratch(output)
        stop = threading.Event()
        beating = threading.Thread(target=lock.beat, args=(stop,), name="tokzip-lock", daemon=True)
        beating.start()
        try:
            yield lock
        finally:
            stop.set()
            beating.join()
            if not lock.lost:
                storage.clear_scratch(output)
    finally:
        _release(lock, new)


def _acquire(lock: Lock, wait: bool) -> None:
    told = False
    tries = 0
    while True:
        lock.write()
        others = lock.others()
        if not others:
            return
        storage.remove(lock.url)
        tries += 1
        if tries < _TRIES:
            time.sleep(random.uniform(0.05, 0.1 * 2**tries))
            continue
        first = min(others, key=lambda c: c["started"])
        since = datetime.fromtimestamp(first["started"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        who = f"another run (host {first['host']}, pid {first['pid']}, started {since})"
        if not wait:
            raise OutputInUseError(f"{lock.output}: {who} is at work there; --wait-for-lock waits until it ends")
        if not told:
            print(f"waiting: {who} is at work on {lock.output}", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL * random.uniform(0.8, 1.2))


def _release(lock: Lock, new: bool) -> None:
    """Take the claim back, and leave no empty folder that this run made."""
    with contextlib.suppress(OSError, TokzipError):
        storage.remove(lock.url)
    if not storage.is_local(lock.output):
        return
    inner = os.path.join(lock.output, "_tokzip")
    for folder in (lock.folder, inner, *([lock.output] if new else [])):
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _read(url: str) -> Claim | None:
    """The claim; None for one taken back meanwhile. What is not a claim of ours is an error that names it."""
    try:
        claim = storage.read_json(url)
        return {
            **{k: str(claim[k]) for k in ("host", "machine", "process_started")},
            **{k: float(claim[k]) for k in ("started", "beat")},
            "pid": int(claim["pid"]),
        }
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as e:
        raise storage.InputError(f"{url}: not a claim of a run: remove it") from e


def _is_dead(url: str, claim: Claim, sleep: Callable[[float], None] = time.sleep) -> bool:
    if claim["machine"] == processes.machine():
        return not processes.is_alive(claim["pid"], claim["process_started"])
    if time.time() - claim["beat"] < EXPIRY:
        return False
    sleep(2 * BEAT)  # its clock may be behind ours
    now = _read(url)
    return now is not None and now["beat"] == claim["beat"]
