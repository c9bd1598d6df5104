"""The model handler inside Beam's own RunInference."""

from __future__ import annotations

import pickle
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_pipeline
from apache_beam.testing.util import assert_that
from made_up import random_rows

from pipelines.inference import load_model
from pipelines.inference.handler import EmbeddingModelHandler
from pipelines.inference.rows import from_sequences


def test_every_example_gets_its_own_vector(tiny_with_specials: Path) -> None:
    rows = [r.tolist() for r in random_rows([3, 0, 9, 3, 30, 1, 64], 200)]
    rows = [*rows, *rows[:3]]
    expected = load_model(str(tiny_with_specials)).embed(from_sequences(rows))

    def check(results) -> None:
        assert len(results) == len(rows)
        for r in results:
            assert np.array_equal(r.inference, expected[rows.index(r.example)])
            assert r.inference.dtype == np.float32

    handler = EmbeddingModelHandler(str(tiny_with_specials), cache="memory:1MB", max_batch_size=4, min_batch_size=2)
    with test_pipeline.TestPipeline(runner=FnApiRunner()) as p:
        assert_that(p | beam.Create(rows) | RunInference(handler), check)


def test_a_batch_keeps_number_and_order(tiny) -> None:
    handler = pickle.loads(pickle.dumps(EmbeddingModelHandler(str(tiny("bert")), long_rows="window")))
    encoder = handler.load_model()
    rows = random_rows([100, 3, 3], 200)
    results = list(handler.run_inference(rows, encoder))
    assert [r.example is row for r, row in zip(results, rows, strict=True)] == [True] * 3
    assert np.array_equal([r.inference for r in results], encoder.encode(rows))
    assert list(handler.run_inference([], encoder)) == []
    assert handler.get_num_bytes(rows) == 106 * 4


def test_options_of_the_handler(tmp_path: Path) -> None:
    handler = EmbeddingModelHandler(str(tmp_path), max_batch_size=7, min_batch_size=3, share=True)
    assert handler.batch_elements_kwargs() == {"min_batch_size": 3, "max_batch_size": 7}
    assert handler.share_model_across_processes()
    assert not EmbeddingModelHandler(str(tmp_path)).share_model_across_processes()
    with pytest.raises(ValueError, match="no inference arguments"):
        handler.validate_inference_args({"x": 1})


def test_cached_values_are_stored_as_asked(tiny) -> None:
    handler = EmbeddingModelHandler(str(tiny("bert")), cache="memory:1MB", cache_values="int8")
    encoder = pickle.loads(pickle.dumps(handler)).load_model()
    encoder.encode(random_rows(range(1, 30), 200))
    assert encoder.stats["cache_value_bytes"] / encoder.stats["cache_values"] < 2 * 32


@pytest.mark.parametrize("option", ["cache_value", "calibration", "kwargs"])
def test_an_unknown_option_of_the_handler_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        EmbeddingModelHandler(str(tmp_path), **{option: 1})


def test_options_of_beam_reach_it(tmp_path: Path) -> None:
    handler = EmbeddingModelHandler(str(tmp_path), max_batch_duration_secs=3, env_vars={"A": "b"})
    assert handler.batch_elements_kwargs()["max_batch_duration_secs"] == 3
    assert handler._env_vars == {"A": "b"}
