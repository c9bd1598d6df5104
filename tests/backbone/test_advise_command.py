"""`tokzip advise`, `--codec auto`, and what the summary says of drift."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards import parquet

import tokzip_core as tz
from pipelines import advise, storage, train

Command = Callable[..., tuple[int, str]]


def texts(kind: str, rows: int, seed: int) -> list[str]:
    """Rows of 40 characters, each a token: letters or digits, some far more frequent than others, in some order."""
    alphabet = np.array(list({"letters": "abcdefghijklmnop", "digits": "0123456789"}[kind]))
    rng = np.random.default_rng(seed)
    ids = rng.zipf(1.5, rows * 40) % len(alphabet)
    follows = rng.random(ids.size) < 0.5
    ids[1:][follows[1:]] = (ids[:-1][follows[1:]] + 1) % len(alphabet)
    return [" ".join(row) for row in alphabet[ids].reshape(rows, 40)]


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_tokzip" / "summary.json").read_text())
    return found


def test_advise_on_text_prints_writes_and_says_what_to_run_next(
    tmp_path: Path, command: Command, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        parquet(tmp_path / "in" / f"{i}.parquet", texts("letters", 200, i))
    argv = ["advise", tmp_path / "in", "--tokenizer", tokenizer_dir, "--out", tmp_path / "advice", "--prefer", "size"]
    code, printed = command(*argv)
    assert code == 0
    advice = json.loads((tmp_path / "advice" / "advice.json").read_text())
    assert {r["name"] for r in advice["rows"]} == set(tz.codecs())
    assert advice["trained_on"] + advice["measured_on"] == advice["corpus_tokens"] == 3 * 200 * 40
    assert advice["recommended"] == min(advice["rows"], key=lambda r: r["total_bits"])["name"]
    assert advice["why"] in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("next: tokzip "))
    next_argv = line.removeprefix("next: tokzip ").replace("OUTPUT", str(tmp_path / "out")).split()
    assert command(*next_argv)[0] == 0
    assert told(tmp_path / "out")["codec"] == advice["recommended"]
    picture = tmp_path / "advice" / "advice.png"
    if importlib.util.find_spec("matplotlib"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        picture.unlink()
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        printed = command(*argv)[1]
    assert "pip install matplotlib" in printed
    assert not picture.exists()


def test_advise_on_token_ids_plain_or_coded(
    tmp_path: Path, command: Command, compress_all: Command, tokenizer_dir: Path
) -> None:
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 300, 0), row_group_size=50)
    assert compress_all("--codec", "arithmetic")[0] == 0
    rows = tz.read_table(str(tmp_path / "out"))["tokens"]
    (tmp_path / "plain").mkdir()
    pq.write_table(pa.table({"ids": rows}), tmp_path / "plain" / "a.parquet")
    found = []
    (tmp_path / "run").mkdir()
    shutil.copytree(tmp_path / "out", tmp_path / "run" / "tokens")
    for source, column in (("out", []), ("run", []), ("plain", ["--column", "ids"])):
        code, printed = command("advise", tmp_path / source, *column, "--out", tmp_path / "advice")
        assert code == 0, printed
        assert "next: blobs = tz.encode(tokens, tz.train(tokens, codec=" in printed
        advice = json.loads((tmp_path / "advice" / "advice.json").read_text())
        found.append(({r["name"]: r["bits"] for r in advice["rows"]}, advice["corpus_tokens"]))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == 300 * 40
    code, printed = command("advise", tmp_path / "plain", "--out", tmp_path / "advice")
    assert code == 1
    assert "a.parquet: no column 'text'; there are ids" in printed
    code, printed = command("advise", tmp_path / "none", "--out", tmp_path / "advice")
    assert code == 1
    assert "no file matches" in printed


def test_advise_on_files_and_what_is_wrong_in_them(tmp_path: Path, command: Command, tokenizer_dir: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(texts("letters", 200, 0)))
    out = ["--out", tmp_path / "advice"]
    assert command("advise", tmp_path / "a.txt", "--tokenizer", tokenizer_dir, *out)[0] == 0
    for i, rows in enumerate(([[1, 2]] * 50, [[1, 2]] * 70 + [[3, -4]])):
        pq.write_table(pa.table({"tokens": rows}), tmp_path / f"{i}.parquet", row_group_size=25)
    assert command("advise", tmp_path / "0.parquet", *out)[0] == 0
    code, printed = command("advise", tmp_path / "0.parquet", tmp_path / "1.parquet", *out)
    assert code == 1
    assert f"{tmp_path}/1.parquet: row 70 has a negative id" in printed
    pq.write_table(pa.table({"tokens": pa.array([[], None], pa.list_(pa.int32()))}), tmp_path / "none.parquet")
    code, printed = command("advise", tmp_path / "none.parquet", *out)
    assert code == 1
    assert f"{tmp_path}/none.parquet: 0 rows with tokens" in printed


def test_the_sample_is_bounded_and_the_corpus_is_estimated(
    tmp_path: Path, command: Command, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advise, "_SAMPLE_BYTES", 40_000)
    for i in range(40):
        parquet(tmp_path / "in" / f"{i}.parquet", texts("letters", 100, i), row_group_size=20)
    argv = ["advise", tmp_path / "in", "--tokenizer", tokenizer_dir, "--out", tmp_path / "advice"]
    assert command(*argv)[0] == 0
    advice = json.loads((tmp_path / "advice" / "advice.json").read_text())
    assert advice["trained_on"] + advice["measured_on"] == pytest.approx(
        40 * 100 * 40 * 40_000 / (40 * 100 * 83), rel=0.1
    )
    assert advice["corpus_tokens"] == pytest.approx(40 * 100 * 40, rel=0.05)


def test_auto_chooses_once_and_a_later_run_keeps_codec_and_codebook(
    tmp_path: Path, compress_all: Command, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 500, 0))
    assert compress_all("--codec", "auto", "--prefer", "size")[0] == 0
    place = tmp_path / "out" / "_tokzip"
    advice = json.loads((place / "advice.json").read_text())
    chosen = advice["recommended"]
    assert chosen == min(advice["rows"], key=lambda r: r["total_bits"])["name"]
    assert told(tmp_path / "out")["codec"] == chosen == json.loads((place / "dataset.json").read_text())["codec"]
    assert told(tmp_path / "out")["codec_why"] == advice["why"]
    before = [(place / name).read_bytes() for name in ("advice.json", "dataset.json", "codebook.tzc")]
    monkeypatch.setattr(tz, "advise", lambda *a, **k: pytest.fail("nothing is to be measured"))
    parquet(tmp_path / "in" / "b.parquet", texts("letters", 500, 1))
    for wish in ("size", "speed"):
        assert compress_all("--codec", "auto", "--prefer", wish)[0] == 0
    assert [(place / name).read_bytes() for name in ("advice.json", "dataset.json", "codebook.tzc")] == before
    assert told(tmp_path / "out")["codec_why"].startswith("chosen once, by an earlier run: ")
    assert compress_all("--codec", chosen)[0] == 0
    code, printed = compress_all("--codec", "raw")
    assert code == 1
    assert f"was made with codec = {chosen}, and is now asked for codec = raw" in printed
    assert command("verify", tmp_path / "out", "--input", tmp_path / "in")[0] == 0


def test_auto_keeps_the_codec_of_a_data_set_that_was_made_with_one(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 100, 0))
    assert compress_all("--codec", "arithmetic")[0] == 0
    parquet(tmp_path / "in" / "b.parquet", texts("letters", 100, 1))
    assert compress_all("--codec", "auto")[0] == 0
    assert told(tmp_path / "out")["codec"] == "arithmetic"
    assert not (tmp_path / "out" / "_tokzip" / "advice.json").exists()


@pytest.mark.parametrize("ends", ["before the codec is recorded", "before a row is committed"])
def test_a_run_that_ends_early_mixes_nothing(
    tmp_path: Path, compress_all: Command, command: Command, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """The next run may choose another codec where nothing was recorded, and then leaves nothing of the first."""
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 300, 0))
    choices = iter(["huffman", "arithmetic"])
    real = tz.advise

    def changing(*args: Any, **options: Any) -> tz.Advice:
        return real(*args, **options, codecs=[next(choices)], rounds=1)

    monkeypatch.setattr(tz, "advise", changing)
    with monkeypatch.context() as patch:
        if ends == "before the codec is recorded":
            real_publish = storage.publish_json

            def publish(value: Any, output: str, url: str) -> None:
                if url.endswith("advice.json"):
                    raise OSError("the machine went away")
                real_publish(value, output, url)

            patch.setattr(storage, "publish_json", publish)
        else:
            patch.setattr("pipelines.map_splits.run_split", lambda *a: (_ for _ in ()).throw(OSError("gone")))
        assert compress_all("--codec", "auto")[0] == 1
    assert compress_all("--codec", "auto")[0] == 0
    expected = "arithmetic" if ends == "before the codec is recorded" else "huffman"
    assert told(tmp_path / "out")["codec"] == expected
    assert tz.load_codebook(str(tmp_path / "out" / "_tokzip" / "codebook.tzc")).codec == expected
    assert json.loads((tmp_path / "out" / "_tokzip" / "advice.json").read_text())["recommended"] == expected
    assert command("verify", tmp_path / "out", "--input", tmp_path / "in")[0] == 0


def test_auto_on_nothing_to_measure(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["", "hello"])
    assert compress_all("--codec", "auto")[0] == 0
    assert (told(tmp_path / "out")["codec"], told(tmp_path / "out")["tokens"]) == ("huffman", 1)


def test_a_wish_without_auto_and_a_threshold_that_is_none(tmp_path: Path, compress_all: Command) -> None:
    parquet(tmp_path / "in" / "a.parquet", ["hello"])
    for more, message in (
        (["--prefer", "size"], "--prefer is for --codec auto"),
        (["--prefer", "small", "--codec", "auto"], "invalid choice: 'small'"),
        (["--drift-threshold", "much"], "'much' is no percentage"),
        (["--drift-threshold", "nan"], "'nan' is no percentage"),
    ):
        code, printed = compress_all(*more)
        assert code == 2
        assert message in printed


@pytest.mark.parametrize("codec", ["huffman", "huffman-o1", "context"])
def test_rows_of_the_same_kind_cost_what_was_expected(tmp_path: Path, compress_all: Command, codec: str) -> None:
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 3_000, 0))
    assert compress_all("--codec", codec)[0] == 0
    assert "drift" not in told(tmp_path / "out"), "the codebook was trained on these very rows"
    parquet(tmp_path / "in" / "b.parquet", texts("letters", 1_000, 1))
    assert compress_all("--codec", codec)[0] == 0
    drift = told(tmp_path / "out")["drift"]
    assert drift["tokens"] == 40_000
    assert abs(drift["excess"]) < 0.02
    assert drift["expected_bits_per_token"] == pytest.approx(drift["bits_per_token"], rel=0.02)
    assert "notice" not in drift
    assert "retraining_saves" not in drift, "a normal night pays nothing"
    entries = [json.loads(p.read_text()) for p in (tmp_path / "out" / "_tokzip" / "manifest").iterdir()]
    assert sum(e["counts"]["expected_blob_bytes"] for e in entries) == told(tmp_path / "out")["expected_blob_bytes"]


@pytest.mark.parametrize("codec", ["huffman", "huffman-o1", "context"])
@pytest.mark.parametrize("more", [[], ["--row-checksum"]], ids=["plain", "checksum"])
def test_rows_of_another_kind_are_noticed_with_what_retraining_saves(
    tmp_path: Path, compress_all: Command, command: Command, tokenizer_dir: Path, codec: str, more: list[str]
) -> None:
    options = ["--codec", codec, *more]
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 2_000, 0))
    assert compress_all(*options)[0] == 0
    parquet(tmp_path / "in" / "b.parquet", texts("digits", 1_000, 1))
    printed = compress_all(*options)[1]
    drift = told(tmp_path / "out")["drift"]
    assert drift["excess"] > 0.5
    assert f"retraining would save {drift['retraining_saves']:.1%} of the bytes of this run's rows" in printed
    # what a new data set of the same shards really makes of them
    assert (
        command(
            "compress", "--input", tmp_path / "in", "--output", tmp_path / "new", "--tokenizer", tokenizer_dir, *options
        )[0]
        == 0
    )
    sizes = [json.loads((tmp_path / o / "_tokzip" / "manifest" / "b.parquet.json").read_text()) for o in ("out", "new")]
    before, after = (e["counts"]["blob_bytes"] for e in sizes)
    assert drift["retraining_saves"] == pytest.approx(1 - after / before, abs=0.01)
    assert drift["retrained_bits_per_token"] == pytest.approx(8 * after / 40_000, rel=0.01)
    # a run without new rows still says so, and a threshold above it does not
    assert "retraining would save" in compress_all(*options)[1]
    parquet(tmp_path / "in" / "c.parquet", texts("digits", 1_000, 2))
    assert "notice" in told(tmp_path / "out")["drift"]
    assert "retraining would save" not in compress_all(*options, "--drift-threshold", "99%")[1]


def test_a_codebook_that_was_given_is_expected_to_take_what_it_says(tmp_path: Path, compress_all: Command) -> None:
    tokens = pa.array(np.random.default_rng(0).integers(5, 9, (1_000, 40)).tolist())
    tz.train(tokens).save(str(tmp_path / "c.tzc"))
    parquet(tmp_path / "in" / "a.parquet", texts("letters", 500, 0))
    code, printed = compress_all("--codebook", tmp_path / "c.tzc")
    assert code == 0
    drift = told(tmp_path / "out")["drift"]
    assert drift["expected_bits_per_token"] == pytest.approx(
        tz.load_codebook(str(tmp_path / "c.tzc")).expected_bits, 0.01
    )
    assert drift["retraining_saves"] > 0.5
    assert "retraining would save" in printed


def test_a_drift_that_cannot_be_measured_fails_no_job(tmp_path: Path, compress_all: Command) -> None:
    for i in range(2):
        parquet(tmp_path / "in" / f"{i}.parquet", texts("letters", 500, i))
    assert compress_all()[0] == 0
    (tmp_path / "out" / "0.parquet").write_bytes(b"PAR1 no longer PAR1")
    parquet(tmp_path / "in" / "b.parquet", texts("digits", 500, 1))
    code, printed = compress_all()
    assert code == 0
    assert "what retraining saves is unknown" in printed
    assert "0.parquet: unreadable" in printed


def test_the_forecast_is_the_same_however_the_sample_is_divided() -> None:
    blocks = [pa.array(np.random.default_rng(i).zipf(1.5, (200, 30)).clip(0, 999).tolist()) for i in range(3)]

    def counted(*which: int) -> train.Counts:
        counts = train.Counts(tz.Trainer("huffman-o1"), [])
        for i in which:
            counts.add(blocks[i])
        return counts

    one, other = counted(0, 1, 2), counted(2)
    other.merge(counted(1, 0))
    assert one.finish() == other.finish() == one.finish()
    codebook, facts = one.finish()
    assert codebook == tz.train(blocks, codec="huffman-o1"), "all rows are trained on"
    held_out = pa.concat_arrays([b[175:] for b in blocks])
    blobs = tz.encode(held_out, tz.train([b[:175] for b in blocks], codec="huffman-o1"))
    assert facts["held_out_bits"] == 8 * sum(len(b.as_py()) for b in blobs.storage) / len(held_out.flatten())
    assert facts["tokens"] == one.tokens == 3 * 200 * 30
