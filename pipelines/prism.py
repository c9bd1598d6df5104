"""A Prism that outlives the signals which tell a watch to stop. Imports options."""

from __future__ import annotations

import atexit
import shutil
import socket
import subprocess
import threading

from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, PrismRunnerOptions

from pipelines.options import Invocation, runner_name

_lock = threading.Lock()


def start(invocation: Invocation) -> None:
    """Start Prism and have the invocation's jobs run on it; it is killed when this process ends.

    Beam's own way leaves Prism in this process's group, to which a terminal sends Ctrl-C: it would end with work in
    flight. Does nothing where another runner is asked for, where one is named by `--job_endpoint`, or where Prism is
    not installed (Beam fetches it).
    """
    with _lock:  # stages that watch together share their options, and so Prism
        _start(invocation)


def _start(invocation: Invocation) -> None:
    asked = PipelineOptions(invocation.beam)
    path = shutil.which(asked.view_as(PrismRunnerOptions).prism_location or "prism")
    if runner_name(invocation.beam) != "PrismRunner" or asked.view_as(PortableOptions).job_endpoint or not path:
        return
    with socket.create_server(("localhost", 0)) as s:
        port = s.getsockname()[1]
    # It goes by itself once its job has failed since its launcher was killed.
    argv = [path, f"--job_port={port}", "--serve_http=false", "--idle_shutdown_timeout=5m"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    atexit.register(process.kill)
    invocation.beam.append(f"--job_endpoint=localhost:{port}")
