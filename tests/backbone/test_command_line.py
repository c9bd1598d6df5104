"""The command line: what is refused, what is passed on to Beam, and the exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines import cli, compress, job, options, verify
from pipelines.options import UsageError
from pipelines.storage import InputError
from tokzip_core.errors import TokzipError

NEEDED = ["--input", "in", "--output", "out"]


def parse(*argv: str) -> options.Invocation:
    return options.parse(compress.parser(), [*NEEDED, *argv])


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--tokeniser", "x"], "unknown option or argument --tokeniser; did you mean --tokenizer?"),
        (["--text-colunm=x"], "unknown option or argument --text-colunm; did you mean --text-column?"),
        (
            ["--direct_num_worker=2"],
            "unknown option or argument --direct_num_worker; did you mean --direct_num_workers?",
        ),
        (["--runer", "PrismRunner"], "unknown option or argument --runer; did you mean --runner?"),
        (["--split-byte", "3"], "did you mean --split-bytes?"),  # no abbreviations
        (["--qqqq"], "unknown option or argument --qqqq"),
        (["--codec", "zip"], "invalid choice: 'zip'"),
        (["--split-bytes", "12 parsecs"], "'12 parsecs' is no size"),
        (["--workers", "two"], "'two' is not 1, 2, 3, …"),
    ],
)
def test_unknown_and_misspelt_options_are_refused_with_a_hint(argv: list[str], hint: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(*argv)
    assert hint in str(e.value)


def test_beams_own_options_pass_through() -> None:
    invocation = parse(
        "--runner=FlinkRunner", "--flink_master", "localhost:8081", "--job_name", "nightly", "--streaming"
    )
    assert options.runner_name(invocation.beam) == "FlinkRunner"
    runner, beam = options.pipeline_options(invocation)
    assert runner is None
    assert beam.view_as(StandardOptions).runner == "FlinkRunner"
    assert beam.get_all_options()["flink_master"] == "localhost:8081"


def test_what_follows_two_dashes_is_not_checked() -> None:
    invocation = parse("--carry", "a,b", "--", "--only_this_job_server_knows=1", "--runner=PortableRunner")
    assert invocation.args.carry == ["a", "b"]
    assert "--only_this_job_server_knows=1" in invocation.beam
    assert options.runner_name(invocation.beam) == "PortableRunner"


def test_without_a_runner_it_is_the_local_one_and_workers_are_processes() -> None:
    runner, beam = options.pipeline_options(parse())
    assert isinstance(runner, FnApiRunner)
    runner, beam = options.pipeline_options(parse("--workers", "3", "--runner", "fnapirunner"))
    assert isinstance(runner, FnApiRunner)
    direct = beam.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 3)


@pytest.mark.parametrize("named", ["--runner=DaskRunner", "--runner=daskrunner"])
def test_the_runner_that_loses_rows_is_refused(named: str) -> None:
    with pytest.raises(UsageError, match="DaskRunner loses rows"):
        options.pipeline_options(parse(named))


@pytest.mark.parametrize("argv", [["--workers", "0"], ["--workers", "2", "--runner=PrismRunner"]])
def test_workers_that_cannot_be(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="--workers"):
        options.pipeline_options(parse(*argv))


def test_input_given_twice_means_both() -> None:
    assert parse("--input", "a", "b").args.input == ["in", "a", "b"]
    given = options.parse(verify.parser(), ["out", "--input", "a", "b", "--input", "c"])
    assert given.args.input == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5", 5), ("64MB", 64_000_000), ("1.5 GB", 1_500_000_000), ("2k", 2_000), ("10b", 10), ("0", 1)],
)
def test_sizes(text: str, size: int) -> None:
    assert options.size(text) == size


def test_names_are_taken_once() -> None:
    assert options.names("a,b,,a") == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        ([], 2, "usage: tokzip COMMAND"),
        (["--help"], 0, "usage: tokzip COMMAND"),
        (["--version"], 0, "tokzip 0."),
        (["squeeze"], 2, "no command 'squeeze'"),
        (["compress", "--output", "x"], 2, "tokzip compress: error: the following arguments are required: --input"),
        (["compress", *NEEDED, "--bogus"], 2, "tokzip compress: error: unknown option or argument --bogus"),
        (["compress", *NEEDED, "--carry", "tokens"], 2, "tokzip compress: error: --carry tokens"),
        (["compress", "--input", "/none/*.parquet", "--output", "/o"], 1, "no file matches /none/*.parquet"),
        (["compress", "--input", "nosuch://x", "--output", "/o"], 1, "nosuch://x: Protocol not known"),
        (["verify", "/none", "--input", "/none"], 1, "/none: not a token data set"),
        (["inspect", "/none.parquet"], 1, "/none.parquet: no such file"),
        (["inspect", "/none.tzc"], 1, "/none.tzc"),
        (["inspect", "/none"], 1, "/none: neither"),
    ],
)
def test_exit_codes_and_one_line_errors(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, says: str
) -> None:
    assert cli.main(argv) == code
    captured = capsys.readouterr()
    assert says in captured.out + captured.err
    assert "Traceback" not in captured.err
    if code == 1:
        assert captured.err.count("\n") == 1


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], model_dir: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "file").write_text("in the way")
    argv = [
        "--input",
        str(tmp_path / "a.txt"),
        "--output",
        str(tmp_path / "file" / "out"),
        "--tokenizer",
        str(model_dir),
    ]
    assert cli.main(["compress", *argv]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


PRISM = """bundle inst003 failed:Traceback (most recent call last):
  File "x.py", line 1, in y
    raise InputError(f"{url}: broken")
OSError: bad page
The above exception was the direct cause of the following exception:
pipelines.storage.InputError: /in/a.parquet: unreadable: bad page [while running 'Compress/compress']
"""
AFTER = "RuntimeError: Bundle processing associated with inst003 has failed.\n"


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError(PRISM), "/in/a.parquet: unreadable: bad page"),
        (RuntimeError(PRISM + AFTER), "/in/a.parquet: unreadable: bad page"),
        (RuntimeError("Traceback\nKeyError: 'x' [while running 'A']"), "KeyError: 'x'"),
        (RuntimeError("\nworker was killed\n"), "RuntimeError: worker was killed"),
        (RuntimeError(), "RuntimeError: "),
        (InputError("/in/a.parquet: broken [while running 'A/B']"), "/in/a.parquet: broken"),
    ],
)
def test_the_cause_of_a_failed_job_is_dug_out(raised: Exception, said: str) -> None:
    with pytest.raises(TokzipError) as e, job._clear_failures():
        raise raised
    assert str(e.value) == said
