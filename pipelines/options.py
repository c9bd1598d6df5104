"""The command line's options: ours, checked, and Beam's, passed through; and the runner they ask for. Imports beam."""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
from dataclasses import dataclass
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from pipelines import logs
from pipelines.lock import Lock
from tokzip_core.errors import TokzipError

LOCAL_RUNNER = "FnApiRunner"
_LOCAL_RUNNERS = (LOCAL_RUNNER, "PrismRunner", "DirectRunner")
# Those that notice every file (Prism: tested; Flink: by Beam's documentation); see docs/RUNNERS.md for the others.
_WATCHING_RUNNERS = ("PrismRunner", "FlinkRunner")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class UsageError(TokzipError):
    """The command line asks for something that cannot be; the command ends with exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse, strict: no abbreviations, and errors as `UsageError`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> Any:
        raise UsageError(message)


def size(text: str) -> int:
    """Bytes from "256MB", "1.5 GB" or a plain number; for argparse."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B?)", text.strip().upper())
    if not match or (unit := match[2] if match[2].endswith("B") or not match[2] else match[2] + "B") not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it as 64MB")
    return max(1, int(float(match[1]) * _UNITS[unit]))


def percent(text: str) -> float:
    """A fraction from "3" or "3%"; for argparse."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage; write it as 3")
    return value / 100


def seconds(text: str) -> float:
    """A positive number of seconds; for argparse."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text.strip()) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; write it as 10")
    return float(text)


def positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]*", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2, 3, …")
    return int(text)


@dataclass(frozen=True)
class Limit:
    """So many rows, or such a part of all."""

    count: int = 0
    part: float | None = None

    def rows(self, of: int) -> float:
        return self.count if self.part is None else self.part * of

    def __str__(self) -> str:
        return str(self.count) if self.part is None else f"{100 * self.part:g}%"


def limit(text: str) -> Limit:
    """A number of rows from "100", or a part of all from "0.1%"; for argparse."""
    if text.strip().endswith("%"):
        return Limit(part=percent(text))
    if not re.fullmatch(r"[0-9]+", text.strip()):
        raise argparse.ArgumentTypeError(f"{text!r} is no limit; write it as 100 or 0.1%")
    return Limit(int(text))


def names(text: str) -> list[str]:
    return list(dict.fromkeys(n for n in text.split(",") if n))


@dataclass
class Invocation:
    """One parsed command line: our options, and Beam's as they were written; and the lock on the output, once held."""

    args: argparse.Namespace
    beam: list[str]
    lock: Lock | None = None
    stop: Any = None  # the `watch.Stop` of several watches in one process


def parse(parser: Parser, argv: list[str]) -> Invocation:
    """Raises `UsageError` for an option that neither we nor Beam know. What follows `--` goes to Beam unchecked:
    runners on a job server have options that only they know."""
    unchecked: list[str] = []
    if "--" in argv:
        at = argv.index("--")
        argv, unchecked = argv[:at], argv[at + 1 :]
    args, rest = parser.parse_known_args(argv)
    beam_parser = _beam_parser()
    _, unknown = beam_parser.parse_known_args(rest)
    if unknown:
        flag = unknown[0].split("=")[0]
        known = [o for p in (parser, beam_parser) for a in p._actions for o in a.option_strings]
        near = difflib.get_close_matches(flag, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown option or argument {flag}{hint}")
    invocation = Invocation(args, rest + unchecked)
    if "workers" in args:
        pipeline_options(invocation)  # what it refuses is refused before any work
    return invocation


def _beam_parser() -> argparse.ArgumentParser:
    """All options that Beam's Python SDK declares (it only warns about others, and drops them)."""
    parser = argparse.ArgumentParser(prog="beam", allow_abbrev=False, add_help=False, conflict_handler="resolve")
    parser.add_value_provider_argument = parser.add_argument  # type: ignore[attr-defined]
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser


def add_input(parser: argparse.ArgumentParser) -> None:
    """The text shards that a token data set is made from."""
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        help="paths, globs or fsspec URLs of Parquet, JSON Lines or plain text",
    )


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a Beam job takes."""
    job = parser.add_argument_group("the job (Beam's own options, such as --runner, are taken too)")
    job.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="processes of the local runner (default 1)"
    )
    job.add_argument(
        "--on-bad-shard",
        choices=("fail", "skip"),
        default="fail",
        help="an unreadable shard ends the job before it starts, or becomes a dead letter (default fail)",
    )
    job.add_argument(
        "--on-vanished-shard",
        choices=("retire", "keep"),
        default="retire",
        help="what was made of a shard that --input no longer finds, since it is gone, is removed or kept (default "
        "retire)",
    )
    job.add_argument(
        "--max-dead-letters",
        type=limit,
        metavar="N|X%",
        help="fail the job where more rows of a stage than this went to the dead letters (default: no limit)",
    )
    job.add_argument(
        "--watch",
        action="store_true",
        help="keep running, and take new and changed shards as they come, until SIGTERM or Ctrl-C; a bad shard is "
        f"a dead letter (runners: {', '.join(_WATCHING_RUNNERS)})",
    )
    job.add_argument(
        "--watch-interval",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="within which a shard that is complete is taken (default 10)",
    )
    job.add_argument("--wait-for-lock", action="store_true", help="where another run is at work on OUTPUT, wait for it")
    job.add_argument("--no-progress", action="store_true", help="no progress bar")
    job.add_argument("--log-format", choices=logs.FORMATS, help="of the standard error: text (default) or JSON lines")
    job.add_argument("--log-level", choices=logs.LEVELS, help="what tokzip tells there (default warning)")


def runner_name(beam: list[str]) -> str:
    """The runner that Beam's options name, in whatever case, or the local one."""
    named: str = _beam_parser().parse_known_args(beam)[0].runner or LOCAL_RUNNER
    return next((r for r in _LOCAL_RUNNERS if r.lower() == named.lower()), named)


def is_local_runner(beam: list[str]) -> bool:
    return runner_name(beam) in _LOCAL_RUNNERS


def pipeline_options(invocation: Invocation) -> tuple[Any, PipelineOptions]:
    """The runner, and the options to build a `beam.Pipeline` with. Raises `UsageError`."""
    runner, beam, workers = runner_name(invocation.beam), list(invocation.beam), invocation.args.workers
    if runner.lower().endswith("daskrunner"):
        raise UsageError("DaskRunner loses rows (as of Beam 2.77, without an error): use another runner")
    if invocation.args.watch and runner not in _WATCHING_RUNNERS:
        raise UsageError(
            f"--watch: {runner} would lose shards, or not stop when told to; use --runner={_WATCHING_RUNNERS[0]} "
            "(docs/RUNNERS.md has the runners that watch)"
        )
    if workers > 1:
        if runner != LOCAL_RUNNER:
            raise UsageError(f"--workers is for the local runner; {runner} has options of its own")
        beam += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    if runner == "PrismRunner" and not any(a.startswith("--prism_location") for a in beam):
        beam += [f"--prism_location={found}" for found in [shutil.which("prism")] if found]
    if runner == LOCAL_RUNNER:
        from pipelines.local_runner import LocalRunner

        rest = [a for i, a in enumerate(beam) if not a.startswith("--runner") and (i == 0 or beam[i - 1] != "--runner")]
        return LocalRunner(), PipelineOptions(rest)
    return None, PipelineOptions(beam)
