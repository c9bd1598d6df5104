"""What the launcher of every stage does: skip what is committed, run the Beam job, show progress. Imports beam."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from tqdm import tqdm

from pipelines import options, splits
from pipelines.manifest import Entry, Manifest
from pipelines.options import Invocation, Parser, UsageError
from pipelines.splits import Split
from pipelines.storage import InputError
from tokzip_core.errors import TokzipError


class JobFailedError(TokzipError):
    """The Beam job failed; the message is its cause, where one of our own errors was it."""


def plan(
    inputs: list[str], output: str, columns_of: Callable[[pa.Schema], list[str]], split_bytes: int, skip_bad: bool
) -> list[Split]:
    """The splits of the inputs. Raises `InputError`, also where the output lies among the input's files."""
    shards = splits.find_shards(inputs)
    for _, f in shards:
        if f.url.startswith(output.rstrip("/") + "/"):
            raise InputError(f"{f.url}: the input lies in the output folder {output}")
    return splits.plan(shards, columns_of, split_bytes, skip_bad)


def command(parser: Parser, run: Callable[[Invocation], dict[str, Any]], argv: list[str] | None) -> int:
    """Run a command from its command line; its exit code: 0 done, 1 failed, 2 usage, 3 done with dead letters."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)  # each Prism that it ends
    try:
        summary = run(options.parse(parser, sys.argv[1:] if argv is None else argv))
    except UsageError as e:
        print(f"{parser.prog}: error: {e}", file=sys.stderr)
        return 2
    except (TokzipError, OSError) as e:
        print(f"{parser.prog}: error: {e}", file=sys.stderr)
        return 1
    return 3 if summary.get("rows_dead") or summary.get("bad_shards") else 0


def run(
    invocation: Invocation,
    output: str,
    planned: list[Split],
    build: Callable[[Any, list[Split]], Any],
) -> list[Entry]:
    """Bring every planned split to its committed state, and return their entries, in order.

    `build` applies transforms to a pipeline for the splits that are not committed yet; with none left, no job is
    started. Raises `JobFailedError`.
    """
    manifest = Manifest(output)
    done = {e.name: e for e in manifest.entries()}
    todo = [s for s in planned if not (s.name in done and done[s.name].settles(s))]
    if todo:
        runner, beam_options = options.pipeline_options(invocation)
        show = options.is_local_runner(invocation.beam) and not invocation.args.no_progress
        with _progress(manifest, todo, show), _clear_failures():
            pipeline = beam.Pipeline(runner=runner, options=beam_options)
            build(pipeline, todo)
            result = pipeline.run()
            state = result.wait_until_finish()
            if state not in (None, "DONE"):
                raise JobFailedError(f"the job ended in state {state}")
        done = {e.name: e for e in manifest.entries()}
    missing = [s.name for s in planned if not (s.name in done and done[s.name].covers(s))]
    if missing:
        raise JobFailedError(f"the runner said that it was done, but {len(missing)} splits are not: {missing[:3]}")
    _retire(manifest, planned, list(done.values()))
    return [done[s.name] for s in planned]


def _retire(manifest: Manifest, planned: list[Split], entries: list[Entry]) -> None:
    """Remove what was made of these shards as other splits, of a shard that has changed or with another size."""
    names, shards = {s.name for s in planned}, {s.url for s in planned}
    for entry in entries:
        if entry.name not in names and entry.source["url"] in shards:
            manifest.remove(entry)


@contextlib.contextmanager
def _progress(manifest: Manifest, todo: list[Split], show: bool) -> Iterator[None]:
    """A progress bar of committed splits, fed from the manifest: it needs nothing of the runner."""
    if not show or not sys.stderr.isatty():
        yield
        return
    stop = threading.Event()
    names, start = {s.name for s in todo}, time.time()

    def watch(bar: Any) -> None:
        while not stop.wait(1.0):
            done = {n for n in manifest.names() if n in names}
            bar.n = min(len(done), len(names))
            bar.refresh()

    with tqdm(total=len(todo), unit="split", desc=manifest.output.rpartition("/")[2]) as bar:
        thread = threading.Thread(target=watch, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            bar.n = len(names & set(manifest.names()))
            bar.refresh()
            logging.getLogger(__name__).debug("job took %.1f s", time.time() - start)


@contextlib.contextmanager
def _clear_failures() -> Iterator[None]:
    """Runners bury a worker's error in pages of traceback; bring ours back up as the cause."""
    try:
        yield
    except TokzipError as e:
        raise type(e)(re.sub(r" \[while running .*\]$", "", str(e))) from e
    except Exception as e:
        errors = re.findall(r"^((?:\w+\.)*\w+Error: .+?)(?: \[while running .*)?$", str(e), re.MULTILINE)
        ours = [m.split(": ", 1)[1] for m in errors if m.startswith(("pipelines.", "tokzip_core."))]
        first = next((line for line in str(e).splitlines() if line.strip()), "")
        cause = [f"{type(e).__name__}: {first}", *errors, *ours][-1]
        raise JobFailedError(cause) from e
