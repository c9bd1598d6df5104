"""A process that has imported and compiled all there is, and runs `tokzip` commands in forks of itself.

For each JSON list on its standard input it prints the fork's process id, then its exit code, a line each. So that a
command can be killed many times without each time waiting for torch and Beam to be imported.
"""

from __future__ import annotations

import importlib
import json
import os
import sys

import pyarrow as pa

import tokzip_core as tz
from pipelines import cli


def warm() -> None:
    """What may be done before a fork: no thread of torch or of Beam may be running."""
    for name in ("pipelines.run", "transformers.models.bert.modeling_bert", "nanotoken", "gigatoken"):
        try:
            importlib.import_module(name)
        except ImportError:  # the fast tokenizers may not be installed
            continue
    rows = pa.array([[1, 2, 3]] * 9)
    tz.decode(tz.encode(rows, codebook := tz.train(rows)), codebook)


def main() -> None:
    warm()
    output, pid = os.dup(1), 0
    for line in sys.stdin:
        if pid:
            os.waitpid(pid, 0)  # only now: until then its number is no other process's
        pid = os.fork()
        if pid == 0:
            os.setsid()
            log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            code = 99
            try:
                code = cli.main(json.loads(line))
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.write(output, b"%d\n" % pid)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.write(output, b"%d\n" % (ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))


if __name__ == "__main__":
    main()
