"""Beam's local runner, with worker processes that say less and whose death is noticed. Imports errors, worker, beam.

Beam 2.77 waits for ever for the result of a worker process that was killed, as for want of memory, where the last step
of a job, like ours, gives nothing to another.
"""

from __future__ import annotations

import shlex
import sys
import threading
from typing import Any

from apache_beam.portability import python_urns
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import SubprocessSdkWorkerHandler, WorkerHandler
from apache_beam.runners.portability.local_job_service import SubprocessSdkWorker

from tokzip_core.errors import TokzipError

_URN = "tokzip:env:worker_process:v1"


class WorkerDiedError(TokzipError):
    """A worker process ended before its work."""


class LocalRunner(FnApiRunner):
    """FnApiRunner, which runs `pipelines.worker` where it is told to work in processes."""

    def run_via_runner_api(self, pipeline_proto: Any, options: Any) -> Any:
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                environment.urn = _URN
                environment.payload = f"{shlex.quote(sys.executable)} -m pipelines.worker".encode()
        return super().run_via_runner_api(pipeline_proto, options)


@WorkerHandler.register_environment(_URN, bytes)
class _Handler(SubprocessSdkWorkerHandler):
    """Starts one worker process, and tells those who wait for it where it ends too early."""

    def start_worker(self) -> None:
        self.stopped, self.died = threading.Event(), False
        self.worker = SubprocessSdkWorker(
            self._worker_command_line, self.control_address, self.provision_info, self.worker_id
        )
        self.worker_thread = threading.Thread(target=self._run, name="run_worker")
        self.worker_thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except RuntimeError as e:  # with its exit code
            self.died = True
            error = WorkerDiedError(
                f"a worker process died, perhaps for want of memory ({e}); what is committed stays, and the same "
                "command goes on from there"
            )
            while not self.stopped.wait(0.2):
                self.control_conn.abort(error)

    def close(self) -> None:
        try:
            super().close()
        except Exception:  # the connection to a dead process is broken
            self.stopped.set()
            if not self.died:
                raise

    def stop_worker(self) -> None:
        self.stopped.set()
        super().stop_worker()
