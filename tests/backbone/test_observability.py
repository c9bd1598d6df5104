"""What a job tells of itself: Beam's metrics, its log, its summary; and that docs/OBSERVABILITY.md names all of it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from shards import parquet

from pipelines import logs, metrics, splits
from pipelines.embed_stage import EmbedStage
from pipelines.map_splits import MapSplits

DOCUMENT = (Path(__file__).parents[2] / "docs" / "OBSERVABILITY.md").read_text()
NAMES = {*metrics.COUNTERS.values(), *metrics.SPLIT_COUNTERS}
DISTRIBUTIONS = {*metrics.SPLIT_DISTRIBUTIONS, *metrics.MODEL_DISTRIBUTIONS}


def told(stage: Any, planned: list[splits.Split], output: str) -> tuple[dict[str, int], dict[str, Any]]:
    """The counters and distributions of a job over the splits."""
    pipeline = beam.Pipeline(runner=FnApiRunner())
    pipeline | beam.Create(planned) | MapSplits(stage, output, skip_bad=True)
    result = pipeline.run()
    result.wait_until_finish()
    found = result.metrics().query(MetricsFilter().with_namespace(metrics.NAMESPACE))
    return tuple({m.key.metric.name: m.committed for m in found[kind]} for kind in ("counters", "distributions"))


def test_metrics_of_stage_1(tmp_path: Path, compress: Any, tiny_json: str) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello", None, "a b"], row_group_size=2)
    (tmp_path / "in" / "b.parquet").write_bytes(b"no Parquet")
    made = compress(tmp_path / "in", tokenizer_json=tiny_json, skip_bad=True, split_bytes=1)
    shutil.rmtree(Path(made.output, "_tokzip", "manifest"))
    counters, distributions = told(made.stage, made.planned, made.output)
    assert counters["splits"] == len(made.planned) == 3
    expected = {"rows_in": 3, "rows_out": 2, "rows_dead": 1, "bad_shards": 1, "tokens": 3}
    assert {name: counters[name] for name in expected} == expected
    assert counters["output_bytes"] == sum(p.stat().st_size for p in Path(made.output).glob("*.parquet"))
    assert counters.keys() <= NAMES
    rows = distributions["split_rows"]
    assert (rows.count, rows.sum, rows.min, rows.max) == (3, 3, 0, 2)
    assert distributions["split_milli_secs"].count == 3
    assert distributions.keys() <= DISTRIBUTIONS


def test_metrics_of_stage_2(tmp_path: Path, tiny_model: Path) -> None:
    column = pa.array([[7, 8], [7, 8], [9], None], pa.list_(pa.int32()))
    path = parquet(tmp_path / "a.parquet", column.cast(pa.list_(pa.int32())))
    stage = EmbedStage(model=str(tiny_model), column="text", cache="memory:1MB")
    planned = splits.plan(splits.find_shards([str(path)]), stage.columns, 1 << 30)
    for run, (inferences, hits) in enumerate([(2, 0), (0, 2)]):
        counters, distributions = told(stage, planned, str(tmp_path / f"out{run}"))
        assert (counters["num_inferences"], counters["cache_hits.memory"]) == (inferences, hits)
        assert (counters["rows_folded"], counters["rows_dead"]) == (1, 1)
        assert {c for c in counters if not c.startswith(metrics.LAYER_COUNTERS)} <= NAMES
        if not run:
            assert distributions.keys() == DISTRIBUTIONS
            assert distributions["inference_request_batch_size"].sum == 2
            assert distributions["inference_batch_latency_micro_secs"].min > 0
    stage.close()


def test_everything_has_its_line_in_the_document(
    tmp_path: Path, compress_all: Any, command: Any, tiny_model: Path
) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello", None])
    assert compress_all()[0] == 3
    argv = ["--input", tmp_path / "out", "--output", tmp_path / "e", "--model", tiny_model, "--cache", "memory:1MB"]
    assert command("embed", *argv)[0] == 0
    summaries = [json.loads((tmp_path / out / "_tokzip" / "summary.json").read_text()) for out in ("out", "e")]
    told = {name for summary in summaries for name in (*summary, *summary["seconds"])}
    for name in (*NAMES, *metrics.LAYER_COUNTERS, *DISTRIBUTIONS, *logs.FIELDS, *told):
        assert f"`{name.replace('.memory', '.LAYER')}" in DOCUMENT, name


def test_the_log_the_summary_and_the_exit_code(tmp_path: Path, tokzip: Callable[..., Any], tokenizer_dir: Path) -> None:
    path = parquet(tmp_path / "in" / "a.parquet", ["hello", None, "a b", None])
    bad = tmp_path / "in" / "b.parquet"
    bad.write_bytes(b"no Parquet")
    argv = ["compress", "--input", tmp_path / "in", "--output", tmp_path / "out", "--tokenizer", tokenizer_dir]
    argv += ["--on-bad-shard", "skip", "--log-format", "json", "--log-level", "info"]
    summary = tmp_path / "out" / "_tokzip" / "summary.json"

    done = tokzip(*argv, check=False)
    assert done.returncode == 3, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    letters = {line["shard"]: line for line in lines if line["level"] == "WARNING" and "shard" in line}
    first = letters[str(path)]
    assert (first["row"], first["split"], first["stage"]) == (1, "a.parquet", "compress")
    assert f"{path}: row 1 is a dead letter: null text (2 in this block)" in first["message"]
    assert str(bad) in letters[str(bad)]["message"]
    (committed,) = [line for line in lines if "a.parquet: committed: 4 rows" in line["message"]]
    assert committed["level"] == "INFO"
    before = json.loads(summary.read_text())
    assert (before["state"], before["error"], before["rows_dead"]) == ("done", None, 2)

    done = tokzip(*argv, "--max-dead-letters", "2", check=False)
    assert done.returncode == 1
    error = json.loads(done.stderr.splitlines()[-1])
    assert error["level"] == "ERROR"
    after = json.loads(summary.read_text())
    assert after["state"] == "failed"
    assert f"tokzip compress: error: {after['error']}" == error["message"]
    assert "3 of 5 rows are dead letters" in after["error"]
    assert {**after, "seconds": 0}.keys() == before.keys()


@pytest.mark.parametrize("argv", [["--log-format", "xml"], ["--log-level", "loud"]])
def test_what_is_no_format_or_level(command: Any, argv: list[str]) -> None:
    assert command("compress", "--input", "a", "--output", "b", *argv)[0] == 2


def test_a_record_is_about_what_surrounds_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pipelines.made_up")
    with caplog.at_level("INFO", "pipelines"), logs.about(stage="embed", shard="s"), logs.about(split="p"):
        logger.info("%s: café", "s", extra={"row": 7})
        line = json.loads(logs.JsonLines().format(caplog.records[0]))
    assert {k: line[k] for k in ("message", "stage", "split", "shard", "row")} == {
        "message": "s: café",
        "stage": "embed",
        "split": "p",
        "shard": "s",
        "row": 7,
    }
    assert "stage" not in json.loads(logs.JsonLines().format(caplog.records[0]))
