"""Reading Parquet shards: every text type, blocks of bounded size, flat memory, and damage of every kind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import parquet

from pipelines import reading, splits
from pipelines.splits import Split
from pipelines.stage import ERROR, ROW, Stats
from pipelines.storage import InputError

ROOT = Path(__file__).parents[2]


def read(path: Path, columns: list[str], row_groups: tuple[int, int] | None = None, first_row: int = 0) -> pa.Table:
    """The shard's blocks put together, after a look at what every block promises."""
    split = Split(str(path), path.name, 0, "", row_groups=row_groups, first_row=first_row)
    with reading.open_shard(str(path)) as reader:
        blocks = list(splits.blocks(split, reader, columns, Stats()))
    assert all(b.schema.names == [*columns, ROW, ERROR] for b in blocks)
    assert all(0 < b.num_rows <= reading.BLOCK_ROWS for b in blocks)
    table = pa.Table.from_batches(blocks) if blocks else pa.table({c: [] for c in [*columns, ROW, ERROR]})
    assert table[ROW].to_pylist() == list(range(first_row, first_row + table.num_rows))
    return table


TEXTS = ["one", "", "ünïcödé 漢字 🎉", None, "one", "x" * 3000]
KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_text_of_every_type_is_tokenized_alike(tmp_path: Path, compress: Any, bert: Any, kind: pa.DataType) -> None:
    storable = kind.value_type if pa.types.is_dictionary(kind) else kind
    values = [v if v is None or "string" in str(storable) else v.encode() for v in TEXTS]
    column = pa.array(values, storable)
    parquet(tmp_path / "a.parquet", column.dictionary_encode() if storable != kind else column)
    made = compress(tmp_path / "a.parquet")
    good = [t for t in TEXTS if t is not None]
    assert made.table()["tokens"].to_pylist() == bert.encode(pa.array(good)).to_pylist()
    assert [(d["row"], d["reason"]) for d in made.dead()] == [(3, "null text")]


def test_columns_come_in_the_order_asked_for_and_rows_are_numbered_within_the_shard(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [str(i) for i in range(100)], row_group_size=10, b=range(100))
    table = read(path, ["b", "text"], row_groups=(3, 5), first_row=30)
    assert table["b"].to_pylist() == list(range(30, 50))
    assert table["text"].to_pylist() == [str(i) for i in range(30, 50)]


def test_long_rows_make_small_blocks(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [f"{i:04d}" * 250_000 for i in range(40)])
    with reading.open_shard(str(path)) as reader:
        sizes = [b.nbytes for b in reader.blocks(["text"], None, 0)]
    assert len(sizes) > 1
    assert max(sizes) <= 2 * reading.BLOCK_BYTES + 1_000_000


def test_long_rows_that_stand_together_are_halved(tmp_path: Path) -> None:
    """By its mean, a row of this row group is short; the long ones would come in one block of 64 MB."""
    texts = ["short"] * 200_000 + [f"{i:04d}" * 250_000 for i in range(64)]
    path = parquet(tmp_path / "a.parquet", texts)
    with reading.open_shard(str(path)) as reader:
        blocks = list(reader.blocks(["text"], None, 0))
    assert max(b.nbytes for b in blocks) <= 2 * reading.BLOCK_BYTES
    assert sum(b.num_rows for b in blocks) == len(texts)


MEMORY = """
import sys, resource
import pyarrow as pa
from pipelines import reading, splits
from pipelines.stage import Stats
pa.set_memory_pool(pa.system_memory_pool())  # others keep what they have freed
def peak(path):
    with reading.open_shard(path) as reader:
        for block in splits.blocks(splits.Split(path, "x", 0, ""), reader, ["text"], Stats()):
            pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small, large = peak(sys.argv[1]), peak(sys.argv[2])
print(large - small)
"""


def test_memory_stays_flat_on_a_row_group_of_many_blocks(tmp_path: Path) -> None:
    paths = []
    for name, rows in (("small", 30_000), ("large", 300_000)):
        texts = pa.array([f"{i:08d}" + "lorem ipsum " * 80 for i in range(rows)])  # a kilobyte a row
        paths.append(tmp_path / f"{name}.parquet")
        pq.write_table(pa.table({"text": texts}), paths[-1], row_group_size=rows, use_dictionary=False)
    done = subprocess.run([sys.executable, "-c", MEMORY, *map(str, paths)], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 100_000_000, "ten times the rows, 270 MB more text, may cost no such memory"


def test_an_empty_shard_and_empty_row_groups(tmp_path: Path, compress: Any) -> None:
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(tmp_path / "gaps.parquet", schema) as writer:
        for texts in ([], ["a"], [], ["b", "c"], []):
            writer.write_table(pa.table({"text": texts}, schema=schema))
    parquet(tmp_path / "none.parquet", pa.array([], pa.string()))
    made = compress(tmp_path / "*.parquet")
    assert [(e.counts["rows_in"], e.counts["rows_out"]) for e in made.entries] == [(3, 3), (0, 0)]
    assert made.table()["n_tokens"].to_pylist() == [1, 1, 1]


def plan_and_read(path: Path) -> None:
    planned = splits.plan(splits.find_shards([str(path)]), lambda _: ["text"], 1 << 30)
    with reading.open_shard(str(path)) as reader:
        for block in splits.blocks(planned[0], reader, ["text"], Stats()):
            assert block.num_rows


def one_error_naming(path: Path) -> str:
    """The one clear error that planning or reading the shard ends in."""
    with pytest.raises(InputError) as e:
        plan_and_read(path)
    message = str(e.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = parquet(tmp_path_factory.mktemp("whole") / "a.parquet", [f"some text {i}" for i in range(2000)], 500)
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0, 1, 4, 11, 100, 0.25, 0.5, 0.9, -100, -8, -5, -4, -1])
def test_a_truncated_shard(tmp_path: Path, whole: bytes, keep: float) -> None:
    path = tmp_path / "cut.parquet"
    path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    one_error_naming(path)


def test_what_is_no_parquet_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.parquet"
    path.write_text("<html>404: not found</html>" * 10)
    assert "unreadable" in one_error_naming(path)


def test_a_flipped_byte_in_any_page_is_found_by_its_checksum(tmp_path: Path, whole: bytes) -> None:
    places = [whole.index(b"some text 3\x0b"[:-1]) + 5, whole.index(b"some text 1234") + 8]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x01
        path = tmp_path / f"flipped-{place}.parquet"
        path.write_bytes(damaged)
        assert "CRC" in one_error_naming(path)


@settings(max_examples=60)
@given(data=st.data())
def test_any_damage_to_pages_is_an_error_or_does_no_harm(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    damaged = bytearray(whole)
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(4, footer - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.parquet"
    path.write_bytes(damaged)
    with contextlib.suppress(InputError):
        plan_and_read(path)


def test_no_damage_to_a_footer_ends_the_process(tmp_path: Path) -> None:
    """`TOKZIP_FOOTER_MUTATIONS=N` tries more. Where one is too many, the last line says which."""
    count = int(os.environ.get("TOKZIP_FOOTER_MUTATIONS", "400"))
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("footer_fuzz.py"), tmp_path, "0", str(count)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-200:]}\n{done.stderr[-2000:]}"
    endings = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    assert len(endings) == count
    assert endings.count("error") > count / 10, "some damage is found"
    assert endings.count("200 rows") > count / 10, "some damage does no harm"


def test_a_column_that_is_there_twice(tmp_path: Path, compress: Any) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"twice\.parquet: 2 columns named 'text'"):
        compress(tmp_path)


def test_a_column_of_another_type_is_an_error_that_names_it(tmp_path: Path, compress: Any) -> None:
    parquet(tmp_path / "numbers.parquet", pa.array([1, 2]))
    with pytest.raises(InputError, match=r"numbers\.parquet: column 'text' is int64, expected text"):
        compress(tmp_path)
