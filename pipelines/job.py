"""What the launcher of every stage does: hold the output, skip what is committed, run the Beam job. Imports beam."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions, TestOptions
from tqdm import tqdm

from pipelines import lock, logs, options, processes, quiet, reading, report, splits, storage, watch_queue
from pipelines.manifest import Entry, Manifest
from pipelines.map_splits import DeadLettersError
from pipelines.options import Invocation, Parser, UsageError
from pipelines.splits import Split
from pipelines.storage import InputError
from tokzip_core.errors import TokzipError


class JobFailedError(TokzipError):
    """The Beam job failed; the message is its cause, where one of our own errors was it."""


class JobConstructed(TokzipError):
    """No error: all that was asked for was the job's description (a Dataflow template, or Beam's `--dry_run`)."""


class OutputError(TokzipError):
    """The output cannot be written, or would be read as input."""


class Done(NamedTuple):
    """What a run came to: the splits, their entries, those of them made now, and the shards that are gone."""

    planned: list[Split]
    entries: list[Entry]
    made: list[Entry]
    gone: list[str]


def find(inputs: list[str], output: str) -> list[tuple[str, storage.FileInfo]]:
    """`splits.find_shards`; raises `OutputError` where the output lies among the input's files."""
    shards = splits.find_shards(inputs)
    for _, f in shards:
        if f.url.startswith(output.rstrip("/") + "/"):
            raise OutputError(f"{f.url}: the input lies in the output folder {output}")
    return shards


def plan(
    inputs: list[str], home: Manifest, columns_of: Callable[[pa.Schema], list[str]], split_bytes: int, skip_bad: bool
) -> list[Split]:
    """The splits of the inputs; shards that are committed already are not opened. Raises `InputError`."""
    return splits.plan(find(inputs, home.output), columns_of, split_bytes, skip_bad, home.planned(split_bytes))


def on_output(run: Callable[[Invocation], dict[str, Any]]) -> Callable[[Invocation], dict[str, Any]]:
    """A command's `run`, as the only one at work on `--output`, and failing beyond `--max-dead-letters`.

    Raises `OutputInUseError`, `OutputError`, `DeadLettersError`.
    """

    @functools.wraps(run)
    def alone(invocation: Invocation) -> dict[str, Any]:
        output = storage.absolute(invocation.args.output)
        with contextlib.ExitStack() as stack:
            try:
                invocation.lock = stack.enter_context(lock.held(output, invocation.args.wait_for_lock))
            except OSError as e:
                raise OutputError(f"--output {output}: cannot be written: {e}") from e
            watch_queue.clear(output)
            try:
                summary = run(invocation)
                limit_dead_letters(invocation.args.max_dead_letters, summary)
            except Exception as e:
                if not (isinstance(e, JobConstructed) or invocation.lock.lost):
                    report.failed(output, e)
                raise
            return summary

    return alone


def _most_dead(limit: options.Limit | None, planned: list[Split]) -> float:
    """More dead rows than these are certainly beyond the limit, whatever else is read. Of a part of all rows that can
    be said where the number of rows is known before."""
    if limit is None or (limit.part is not None and any(s.rows < 0 for s in planned)):
        return math.inf
    return limit.rows(sum(s.rows for s in planned) + len({s.url for s in planned}))  # each a row, if it is bad


def limit_dead_letters(limit: options.Limit | None, summary: dict[str, Any]) -> None:
    """Of one stage (a summary of several has no `rows_in`); a shard that is unreadable counts as one row."""
    if limit is None or "rows_in" not in summary:
        return
    dead, rows = summary["rows_dead"] + summary["bad_shards"], summary["rows_in"] + summary["bad_shards"]
    if dead > limit.rows(rows):
        raise DeadLettersError(
            f"{summary['output']}: {dead:,} of {rows:,} rows are dead letters, more than --max-dead-letters {limit} "
            "allows. What is committed stays"
        )


def command(parser: Parser, run: Callable[[Invocation], dict[str, Any]], argv: list[str] | None) -> int:
    """Run a command from its command line; its exit code: 0 done, 1 failed, 2 usage, 3 done with dead letters."""
    logs.configure()
    processes.share_arenas()  # before there are threads
    logging.getLogger("apache_beam.utils.subprocess_server").setLevel(logging.ERROR)  # each Prism that it ends
    quiet.quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # its encoding may lack a letter of a name, or a table's rule
    try:
        invocation = options.parse(parser, sys.argv[1:] if argv is None else argv)
        logs.configure(*(getattr(invocation.args, a, None) for a in ("log_format", "log_level")))
        summary = run(invocation)
    except UsageError as e:
        logs.failed(parser.prog, e)
        return 2
    except JobConstructed as e:
        print(e)
        return 0
    except (TokzipError, OSError) as e:
        logs.failed(parser.prog, e)
        return 1
    return 3 if summary.get("rows_dead") or summary.get("bad_shards") else 0


def run(
    invocation: Invocation,
    home: Manifest,
    planned: list[Split],
    build: Callable[[Any, list[Split], float], Any],
) -> Done:
    """Bring every planned split to its committed state, and remove what was made of shards that are gone.

    `build` applies transforms to a pipeline for the splits that are not committed yet, of whose rows so many may be
    dead; with none left, no job is started. Raises `JobFailedError`, `DeadLettersError`, and `InputError` where a split
    would take the place of another shard's.
    """
    done = {e.name: e for e in home.entries()}
    _refuse_namesakes(planned, done)
    ours = {s.name for s in planned}
    if lost := [e for e in home.lost() if e.name in ours]:
        logs.note(f"{len(lost)} committed files are no longer there, and are made anew: {lost[0].name} …")
        done |= {e.name: home.void(e) for e in lost}
    todo = [s for s in planned if not (s.name in done and done[s.name].settles(s))]
    if todo:
        settled = [done[s.name] for s in planned if s.name in done and done[s.name].settles(s)]
        most_dead = _most_dead(invocation.args.max_dead_letters, planned) - sum(e.dead for e in settled)
        show = options.is_local_runner(invocation.beam) and not invocation.args.no_progress
        with _progress(home, todo, show):
            execute(invocation, f"{home.output}: the job of {len(todo)} splits", lambda p: build(p, todo, most_dead))
        done = {e.name: e for e in home.entries()}
    missing = [s.name for s in planned if not (s.name in done and done[s.name].covers(s))]
    if missing:
        raise JobFailedError(f"the runner said that it was done, but {len(missing)} splits are not: {missing[:3]}")
    if invocation.lock:
        invocation.lock.check()
    gone = retire(home, planned, list(done.values()), invocation.args)
    return Done(planned, [done[s.name] for s in planned], [done[s.name] for s in todo], gone)


def execute(invocation: Invocation, what: str, build: Callable[[Any], Any], streaming: bool = False) -> None:
    """Run the Beam job that `build` makes of an empty pipeline, to its end. Raises `JobFailedError`; and
    `JobConstructed`, naming `what`, where no more was asked for."""
    runner, beam_options = options.pipeline_options(invocation)
    if streaming:
        beam_options.view_as(StandardOptions).streaming = True
    with _clear_failures():
        pipeline = beam.Pipeline(runner=runner, options=beam_options)
        build(pipeline)
        result = pipeline.run()
        if _only_constructs(beam_options):
            raise JobConstructed(f"{what} is constructed, and not run")
        state = result.wait_until_finish()
        if state not in (None, "DONE"):
            raise JobFailedError(f"the job ended in state {state}")


def _only_constructs(beam_options: PipelineOptions) -> bool:
    """Of all runners, Dataflow's alone has a run that ends with the job's description."""
    if not str(beam_options.view_as(StandardOptions).runner).lower().endswith("dataflowrunner"):
        return False
    google, test = beam_options.view_as(GoogleCloudOptions), beam_options.view_as(TestOptions)
    return bool(google.template_location or test.dry_run)


def _refuse_namesakes(planned: list[Split], done: dict[str, Entry]) -> None:
    """A split whose name another shard's output bears takes its place only where that shard is gone (it has moved)."""
    shards = {s.url for s in planned}
    for s in planned:
        other = done[s.name].source["url"] if s.name in done else s.url
        if other != s.url and other not in shards and not storage.is_gone(other):
            raise InputError(
                f"{s.url} would be written to {s.name}, which was made from {other}: name both inputs in one run, or "
                "use another output folder"
            )


def retire(manifest: Manifest, planned: list[Split], entries: list[Entry], args: Any) -> list[str]:
    """Remove what was made of these shards as other splits (of a shard that has changed, or with another size), and
    what was made of shards that are gone, whose URLs are returned.

    Gone is a shard that the input of this run, as it is named, would find if it were there, and of which its store
    says that it is not. So a run over some of the shards leaves the others alone, and so does a store that cannot be
    listed; an input that matches nothing at all is an error long before.
    """
    names, shards = {s.name for s in planned}, {s.url for s in planned}
    others = [e for e in entries if e.name not in names]
    inputs = [args.input] if isinstance(args.input, str) else args.input
    found_by = [storage.would_find(i, reading.SUFFIXES) for i in inputs]
    missing = {e.source["url"] for e in others} - shards
    suspects = sorted(u for u in missing if any(finds(u) for finds in found_by))
    with ThreadPoolExecutor(16) as pool:
        gone = [u for u, is_gone in zip(suspects, pool.map(storage.is_gone, suspects), strict=True) if is_gone]
        removed = shards | (set(gone) if args.on_vanished_shard == "retire" else set())
        list(pool.map(manifest.remove, [e for e in others if e.source["url"] in removed]))
    if gone:
        what = "was removed" if args.on_vanished_shard == "retire" else "is kept"
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        logs.note(f"{len(gone)} shards are gone; what was made of them {what}: {', '.join(gone[:3])}{more}")
    return gone


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
            with contextlib.suppress(TokzipError):  # which must not hide why the job failed
                bar.n = len(names & set(manifest.names()))
            bar.refresh()
            logging.getLogger(__name__).debug("job took %.1f s", time.time() - start)


@contextlib.contextmanager
def _clear_failures() -> Iterator[None]:
    """Runners bury a worker's error in pages of traceback; bring ours back up as the cause, without the pages."""
    quiet.hold()
    are_news = True
    try:
        yield
    except JobFailedError:  # which has no more to say than that it failed
        raise
    except TokzipError as e:
        are_news = False
        raise type(e)(re.sub(r" \[while running .*\]$", "", str(e))) from e
    except Exception as e:
        errors = re.findall(r"^((?:\w+\.)*\w+Error: .+?)(?: \[while running .*)?$", str(e), re.MULTILINE)
        ours = [m.split(": ", 1)[1] for m in errors if m.startswith(("pipelines.", "tokzip_core."))]
        are_news = not ours
        first = next((line for line in str(e).splitlines() if line.strip()), "")
        cause = [f"{type(e).__name__}: {first}", *errors, *ours][-1]
        raise JobFailedError(cause) from e
    finally:
        quiet.release(are_news)
