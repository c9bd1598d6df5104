"""Stage 1: text blocks to token blob blocks. Imports tokenizing and tokzip_core."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

import numpy as np
import pyarrow as pa

import tokzip_core as tz
from pipelines import storage
from pipelines.manifest import Manifest
from pipelines.stage import ERROR, ROW, Stage, Stats, Work, once
from pipelines.storage import InputError
from pipelines.tokenizing import Tokenizer
from pipelines.transient import retry
from tokzip_core import checksum

_TEXT_TYPES = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view())


@dataclass(frozen=True)
class CompressStage(Stage):
    """Tokenize and encode. The tokenizer and the codebook are read from the data set itself."""

    output: str
    text_column: str
    carry: tuple[str, ...]
    engine: str
    run_id: str  # a stage is opened anew for every run: the folder may have been emptied since the last
    row_checksum: bool = False

    name = "compress"

    @property
    def key(self) -> str:
        return json.dumps([self.name, *astuple(self)])

    def columns(self, source: pa.Schema) -> list[str]:
        if not source.names:  # an empty JSON Lines file says nothing of its columns
            return []
        for c in (self.text_column, *self.carry):
            if (n := source.names.count(c)) != 1:
                what = f"{n} columns named" if n else "no column"
                raise InputError(f"{what} {c!r}; there are {', '.join(source.names)}")
        kind = source.field(self.text_column).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if plain not in _TEXT_TYPES:
            raise InputError(f"column {self.text_column!r} is {kind}, expected text")
        return list(dict.fromkeys((self.text_column, *self.carry)))

    def tokenizer(self) -> Tokenizer:
        """The process's one tokenizer for this stage."""

        def load() -> Tokenizer:
            return Tokenizer(storage.read_bytes(Manifest(self.output).place("tokenizer.json")).decode(), self.engine)

        return once(f"tokenizer of {self.key}", load)

    def _open(self) -> Work:
        return _Compress(self)


class _Compress(Work):
    def __init__(self, stage: CompressStage) -> None:
        self.stage = stage
        self.tokenizer = stage.tokenizer()
        home = Manifest(stage.output)
        self.codebook = retry(tz.load_codebook, home.place("codebook.tzc"))
        self.expected_bits = _expected_bits(home, self.codebook)
        name = (self.codebook.codec, self.codebook.version, self.codebook.id)
        self.blob_type = tz.TokenBlobType(*name, stage.row_checksum)

    @property
    def identity(self) -> dict[str, str]:
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "codebook": self.codebook.id,
            "codec": self.codebook.codec,
            **({"row_checksum": checksum.NAME} if self.stage.row_checksum else {}),
        }

    @property
    def notes(self) -> dict[str, str]:
        return {"tokenizer_engine": self.tokenizer.engine_name}

    @property
    def file_metadata(self) -> dict[str, str]:
        described = {"fingerprint": self.tokenizer.fingerprint, "vocabulary": self.tokenizer.vocabulary}
        return {
            "tokzip.tokenizer": json.dumps(described, sort_keys=True),
            **tz.codebook_metadata(self.codebook),
        }

    def schema(self, source: pa.Schema) -> pa.Schema:
        kept = [source.field(c) if source.names else pa.field(c, pa.null()) for c in self.stage.carry]
        tokens = [pa.field("tokens", self.blob_type), pa.field("n_tokens", pa.int32())]
        return pa.schema([*(f.with_metadata(None) for f in kept), *tokens])

    def run(self, blocks: Iterator[pa.RecordBatch], stats: Stats) -> Iterator[pa.RecordBatch]:
        for block, lists, errors in tokenized(blocks, self.tokenizer, self.stage.text_column, stats):
            with stats.time("encode"):
                blobs = tz.encode(lists, self.codebook, self.stage.row_checksum)
                counts = np.diff(lists.offsets.to_numpy()).astype(np.int32)
            stats.add("tokens", int(counts.sum()))
            check, good = checksum.SIZE * self.stage.row_checksum, errors.null_count
            stats.add("blob_bytes", blob_bytes(blobs) - check * (len(blobs) - good))  # a bad row is an empty one
            stats.add("expected_blob_bytes", round(counts.sum() * self.expected_bits / 8) + check * good)
            columns = [*(block.column(c) for c in self.stage.carry), blobs, pa.array(counts)]
            schema = self.schema(block.schema).append(pa.field(ROW, pa.int64(), nullable=False))
            yield pa.record_batch([*columns, block.column(ROW), errors], schema.append(pa.field(ERROR, pa.string())))


def _expected_bits(home: Manifest, codebook: tz.Codebook) -> float:
    """Bits a token that rows like those trained on should take: measured, row ends and all, where the codebook was
    trained for this data set; else what the codebook says of itself."""
    try:
        measured = storage.read_json(home.place("training.json")).get("held_out_bits")
    except FileNotFoundError:
        measured = None
    return codebook.expected_bits if measured is None else float(measured)


def blob_bytes(blobs: pa.ExtensionArray) -> int:
    """All bytes of the payload of a blob column; the row lengths are the file's."""
    stored = blobs.storage
    ends = np.frombuffer(stored.buffers()[1], np.int32)[stored.offset : stored.offset + len(stored) + 1]
    return int(ends[-1] - ends[0])


def tokenized(
    blocks: Iterable[pa.RecordBatch], tokenizer: Tokenizer, column: str, stats: Stats
) -> Iterator[tuple[pa.RecordBatch, pa.ListArray, pa.Array]]:
    """(block, its token ids, its errors) a block; a row with an error has no tokens. The first rows are probed."""
    probed = False
    for block in blocks:
        with stats.time("tokenize"):
            texts, errors = valid_text(block.column(column), block.column(ERROR))
            if not probed:
                tokenizer.probe(texts)
                probed = True
            lists = tokenizer.encode(texts)
        yield block, lists, errors


def valid_text(column: pa.Array, errors: pa.Array) -> tuple[pa.StringArray, pa.Array]:
    """The column as UTF-8 strings with "" for the rows that are bad, and the errors with those rows' added."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type not in (pa.string(), pa.binary()):
        column = column.cast(pa.binary() if "binary" in str(column.type) else pa.string(), safe=False)
    texts = column.view(pa.string())
    try:
        texts.validate(full=True)
        invalid: dict[int, str] = {}
    except pa.ArrowInvalid:
        invalid = _invalid_rows(column)
    if not invalid and texts.null_count == 0 and errors.null_count == len(errors):
        return texts, errors
    reasons, values = errors.to_pylist(), column.view(pa.binary()).to_pylist()
    for i, value in enumerate(values):
        if reasons[i] is None:
            reasons[i] = "null text" if value is None else invalid.get(i)
        if reasons[i] is not None:
            values[i] = b""
    return pa.array(values, pa.binary()).view(pa.string()), pa.array(reasons, pa.string())


def _invalid_rows(column: pa.Array) -> dict[int, str]:
    found = {}
    for i, value in enumerate(column.view(pa.binary()).to_pylist()):
        try:
            (value or b"").decode()
        except UnicodeDecodeError as e:
            found[i] = f"invalid UTF-8 at byte {e.start}"
    return found
