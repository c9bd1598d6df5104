"""The summary of a run: the sums over the manifest, as `summary.json` and for people. Imports manifest and storage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pipelines import processes, storage
from pipelines.manifest import Entry, Manifest
from pipelines.splits import Split
from tokzip_core._version import __version__
from tokzip_core.errors import TokzipError


def summarize(
    home: Manifest, planned: list[Split], entries: list[Entry], made: list[Entry], gone: list[str], started: float
) -> dict[str, Any]:
    """What every stage reports: rows, files, seconds and memory.

    made: of the entries, those of this run; gone: shards; started: a `time.time()`.
    """
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for e in entries:
        counts.update(e.counts)
    for e in made:
        seconds.update(e.seconds)
    in_workers = seconds.pop("all", 0.0)
    return {
        "output": home.output,
        "version": __version__,
        "shards": len({s.url for s in planned}),
        "shards_gone": len(gone),
        "splits": len(planned),
        "splits_done_now": len(made),
        **{k: int(v) if float(v).is_integer() else v for k, v in sorted(counts.items())},
        "bad_shards": int(counts["bad_shards"]),
        "output_bytes": sum(e.output["bytes"] for e in entries if e.output),
        "seconds": {
            "wall": round(time.time() - started, 3),
            "workers": round(in_workers, 3),
            **{k: round(v, 3) for k, v in sorted(seconds.items())},
        },
        "peak_memory_bytes": max([processes.peak_memory(), *(e.worker["peak_rss"] for e in made)]),
    }


def notes(entries: Iterable[Entry], name: str) -> list[str]:
    return sorted({e.notes[name] for e in entries if name in e.notes})


def ratio(a: float, b: float) -> float | None:
    return round(a / b, 4) if b else None


def publish(summary: dict[str, Any], home: Manifest, title: str) -> None:
    """Write `summary.json` into the data set, and show the summary to people."""
    summary["summary"] = home.place("summary.json")
    storage.publish_json(summary | ended("done"), home.output, summary["summary"])
    print(show(summary, title))


def unchanged(home: Manifest) -> dict[str, Any]:
    """The summary of a run that was told to end before it had begun: that of the last one that was done, or nothing."""
    if there := read_json(home.place("summary.json")):
        storage.publish_json(there | ended("done"), home.output, home.place("summary.json"))
    return there


def ended(state: str) -> dict[str, Any]:
    """What a summary says of how and when the last run ended: `done`, or `failed`."""
    return {"state": state, "finished": datetime.now(UTC).isoformat(timespec="seconds"), "error": None}


def failed(output: str, error: Exception) -> None:
    """Say in the summaries of the output, where there is a data set, that its last run failed, and why; the figures in
    them stay those of the last run that was done."""
    with suppress(TokzipError, OSError):  # what is wrong with the store is perhaps the very error
        is_begun = storage.exists(storage.join(output, "_tokzip", "dataset.json"))
        for url, needed in (("_tokzip/summary.json", is_begun), ("summary.json", False)):
            there = read_json(url := storage.join(output, url))
            if there or needed:
                told = {"output": output, **there, **ended("failed"), "error": str(error)}
                storage.publish_json(told, output, url)


def show(summary: dict[str, Any], title: str) -> str:
    """The summary for people: one aligned line a figure."""
    lines = [f"── {title} " + "─" * max(0, 60 - len(title))]
    for name, value in summary.items():
        lines.append(f"{name.replace('_', ' '):<24} {_text(name, value)}")
    return "\n".join(lines)


def _text(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{k} {_text(name, v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if name.endswith("bytes") and isinstance(value, int):
        return f"{value:,} ({value / 1e6:,.1f} MB)"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
    return str(value)


def read_json(url: str) -> dict[str, Any]:
    """A small JSON object of the data set; empty where there is none."""
    try:
        return storage.read_json(url)
    except (FileNotFoundError, NotADirectoryError):
        return {}
