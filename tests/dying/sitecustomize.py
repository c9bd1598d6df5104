"""Python runs this at the start of a process that `dying` of conftest.py is the environment of: it kills itself as it
commits a split, once its data is published and before its entry is. So a kill in the middle waits for no clock."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def _die(event: str, args: tuple[Any, ...]) -> None:
    if event != "os.rename" or not str(args[1]).startswith(_ENTRIES):
        return
    folder, begins = os.path.split(_ENTRIES)
    committed = [n for n in os.listdir(folder) if n.startswith(begins) and n.endswith(".json")]
    if len(committed) >= int(os.environ["TOKZIP_TEST_DIES_AFTER"]):
        try:
            os.close(os.open(os.environ["TOKZIP_TEST_DIED"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:  # one has died of it, and that is enough
            return
        os.kill(os.getpid(), signal.SIGKILL)


if _ENTRIES := os.environ.get("TOKZIP_TEST_DIES_AT", ""):
    sys.addaudithook(_die)
