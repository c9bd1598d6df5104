"""The manifest: one small JSON entry for every committed split, beside the data. Imports storage and splits.

Layout of a data set: `<output>/**.parquet` are the data; everything else lies under `<output>/_tokzip/`:
`manifest/<split>.json`, `dead_letters/<split>.parquet`, `codebook.tzc`, `dataset.json`, `summary.json`, `tmp/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipelines import storage
from pipelines.splits import Split
from pipelines.storage import FileInfo, InputError
from tokzip_core.errors import TokzipError

FORMAT = 1
# Settings that are digests, and of what.
_DIGESTS = {
    "model": " (a digest of weights, tokenizer, --pooling, --normalize, --max-length, --long-rows and precision)",
    "tokenizer": " (a digest of its tokenizer.json)",
}


class DatasetMismatchError(TokzipError):
    """The output folder holds data made with other options; mixing the two would make a data set of neither."""


@dataclass(frozen=True)
class Entry:
    """What was made of one split. Published after its data, so that it never names a file that is not there.

    `counts` has rows_in, rows_out, rows_dead, bad_shards and what the stage counted; `seconds` is by part.
    `output` and `dead_letters` are {url path below the output folder, bytes, sha256}, or None where there is none.
    `plan` is what the split's planner knew besides: rows, bytes, split_bytes.
    """

    name: str
    source: dict[str, Any]
    identity: dict[str, str]
    output: dict[str, Any] | None
    dead_letters: dict[str, Any] | None
    counts: dict[str, float]
    seconds: dict[str, float]
    notes: dict[str, str] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, int] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def dead(self) -> int:
        """Dead letters; a shard that is unreadable is one."""
        return int(self.counts.get("rows_dead", 0) + self.counts.get("bad_shards", 0))

    def covers(self, split: Split) -> bool:
        return self.source == split.fingerprint

    def settles(self, split: Split) -> bool:
        """Whether there is nothing to do for the split; a shard that was unreadable is tried again."""
        return self.covers(split) and not self.counts.get("bad_shards")


class Manifest:
    """The manifest of one output folder or URL."""

    def __init__(self, output: str) -> None:
        self.output = output
        self._read: dict[FileInfo, Entry] = {}

    def place(self, *parts: str) -> str:
        return storage.join(self.output, "_tokzip", *parts)

    def _entry_url(self, name: str) -> str:
        return self.place("manifest", f"{name}.json")

    def get(self, name: str) -> Entry | None:
        """The entry of the split of that name, if there is one."""
        try:
            return _read(self._entry_url(name))
        except FileNotFoundError:
            return None

    def commit(self, entry: Entry) -> None:
        storage.publish_json(asdict(entry), self.output, self._entry_url(entry.name))

    def void(self, entry: Entry) -> Entry:
        """Make the entry one that covers no split, before its files are touched: whatever a crash leaves of them,
        they are made or removed anew, even where the shard becomes again what it was."""
        void = replace(entry, source={**entry.source, "version": None})
        self.commit(void)
        return void

    def remove(self, entry: Entry) -> None:
        """Remove a split: its files, and last its entry, so that what a crash leaves behind still has one."""
        self.void(entry)
        for made in (entry.output, entry.dead_letters):
            if made:
                storage.remove(storage.join(self.output, made["path"]))
        storage.remove(self._entry_url(entry.name))

    def names(self) -> list[str]:
        """The names of all committed splits."""
        folder = self.place("manifest")
        prefix = storage.absolute(folder).rstrip("/") + "/"
        return [u.removeprefix(prefix).removesuffix(".json") for u in storage.list_files(folder, ".json")]

    def entries(self) -> list[Entry]:
        """Every entry, by name. Of those that this object has read before, only what has changed is read again."""
        files = storage.list_infos(self.place("manifest"), ".json")
        new = [f for f in files if not f.version or f not in self._read]
        with ThreadPoolExecutor(16) as pool:
            read = self._read | dict(zip(new, pool.map(_read, [f.url for f in new]), strict=True))
        self._read = {f: read[f] for f in files}
        return list(self._read.values())

    def lost(self) -> list[Entry]:
        """The entries whose data file is no longer there: no run removes one before its entry."""
        prefix = storage.absolute(self.output).rstrip("/") + "/"
        there = {url.removeprefix(prefix) for url in storage.list_files(self.output, ".parquet")}
        found = [self.get(name) for name in self.names() if name not in there]
        return [e for e in found if e and e.output and e.source["version"]]

    def planned(self, split_bytes: int) -> Callable[[str, FileInfo], list[Split]]:
        """What `splits.plan` takes as `known`: the splits of a shard that is committed whole, as it is now."""
        committed: dict[tuple[str, int, str], list[Entry]] = defaultdict(list)
        for e in self.entries():
            if e.plan and not e.counts.get("bad_shards"):
                committed[e.source["url"], e.source["size"], e.source["version"]].append(e)

        def known(shard_name: str, f: FileInfo) -> list[Split]:
            entries = committed.get((f.url, f.size, f.version), [])
            named = [(e.name, Split.from_fingerprint(e.source, shard_name, **e.plan)) for e in entries]
            splits = sorted((s for name, s in named if s.name == name), key=lambda s: s.index)
            whole = [(s.index, s.count) for s in splits] == [(i, len(splits)) for i in range(len(splits))]
            one = len(splits) == 1 and splits[0].bytes <= split_bytes  # and so it would be again
            return splits if whole and (one or all(s.split_bytes == split_bytes for s in splits)) else []

        return known

    def claim(self, settings: dict[str, str], made_by_run: list[str]) -> None:
        """Make the folder a data set of these settings, or raise `DatasetMismatchError` if it is one of others.

        A folder without a committed split is nobody's: settings that a failed run left there are replaced, and
        what it had made under them (`made_by_run`, paths below `_tokzip/`) is removed.
        """
        url = self.place("dataset.json")
        try:
            found = storage.read_json(url)
        except FileNotFoundError:
            if self.names():
                raise DatasetMismatchError(f"{url} is gone: what {self.output} was made with cannot be told") from None
            found = settings
        differing = sorted(n for n in found.keys() | settings.keys() if found.get(n) != settings.get(n))
        if differing and self.names():
            name = differing[0]
            raise DatasetMismatchError(
                f"{self.output} was made with {name} = {found.get(name)}, and is now asked for {name} = "
                f"{settings.get(name)}{_DIGESTS.get(name, '')}: use another output folder, or the same options"
            )
        if differing:
            for path in made_by_run:
                storage.remove(self.place(path))
        storage.publish_json(settings, self.output, url)


def _read(url: str) -> Entry:
    found = storage.read_json(url)
    try:
        entry = Entry(**found)
    except TypeError as e:
        raise InputError(f"{url}: not a manifest entry: {e}") from e
    if entry.format != FORMAT:
        raise InputError(f"{url}: manifest format {entry.format}; this version of tokzip reads {FORMAT}")
    return entry


def tokens_of(url: str) -> str:
    """Of the output of `tokzip run`, its token data set; of anything else, itself."""
    tokens = storage.join(storage.absolute(url), "tokens")
    return tokens if storage.exists(Manifest(tokens).place("dataset.json")) else url
