"""Beam's metrics of a split: their names, which stay, and what goes into them. Imports manifest, beam.

docs/OBSERVABILITY.md says what each means. What RunInference has a name for bears that name.
"""

from __future__ import annotations

from apache_beam.metrics import Metrics

from pipelines.manifest import Entry

NAMESPACE = "tokzip"
# By what a manifest entry calls the same count.
COUNTERS = {
    "rows_in": "rows_in",
    "rows_out": "rows_out",
    "rows_dead": "rows_dead",
    "bad_shards": "bad_shards",
    "tokens": "tokens",
    "blob_bytes": "blob_bytes",
    "rows_folded": "rows_folded",
    "rows_truncated": "rows_truncated",
    "rows_windowed": "rows_windowed",
    "rows_computed": "num_inferences",
    "tokens_computed": "tokens_computed",
}
# Each with the name of a layer: `cache_hits.disk`.
LAYER_COUNTERS = ("cache_hits", "cache_evicted", "cache_refused", "cache_corrupt", "cache_failed")
SPLIT_COUNTERS = ("splits", "output_bytes")
SPLIT_DISTRIBUTIONS = ("split_rows", "split_tokens", "split_milli_secs")
MODEL_DISTRIBUTIONS = (
    "inference_request_batch_size",
    "inference_batch_latency_micro_secs",
    "load_model_latency_milli_secs",
    "model_byte_size",
)


def update(entry: Entry, observed: list[tuple[str, float]]) -> None:
    """Count a committed split, with what was observed while it was made (nothing, where an earlier attempt made it)."""
    for name, value in entry.counts.items():
        base, _, layer = name.partition(".")
        counter = name if layer and base in LAYER_COUNTERS else COUNTERS.get(name)
        if counter:
            _count(counter, value)
    _count("splits", 1)
    _count("output_bytes", entry.output["bytes"] if entry.output else 0)
    _observe("split_rows", entry.counts["rows_in"])
    _observe("split_tokens", entry.counts.get("tokens", 0))
    _observe("split_milli_secs", entry.seconds["all"] * 1000)
    for name, value in observed:
        _observe(name, value)


def _count(name: str, value: float) -> None:
    Metrics.counter(NAMESPACE, name).inc(int(value))


def _observe(name: str, value: float) -> None:
    Metrics.distribution(NAMESPACE, name).update(round(value))
