"""`tokzip embed`: the precision is settled once, recorded, and kept; types and dimensions reach the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from made_up import change_a_weight

from pipelines import compress, embed
from pipelines.inference import load_model
from pipelines.inference import model as model_module
from pipelines.inference.model import EmbeddingModel
from pipelines.stage import _loaded


@pytest.fixture
def tokens(tiny_with_specials: Path, tmp_path: Path) -> Path:
    """A token data set of few rows, the first of them null."""
    (tmp_path / "text").mkdir()
    texts = pa.array([None, *("a " * (n % 50) for n in range(100))], pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "text" / "t.parquet")
    code = compress.main(["--input", str(tmp_path / "text"), "--output", str(tmp_path / "tokens"), "--tokenizer",
                          str(tiny_with_specials), "--tokenizer-engine", "huggingface", "--no-progress"])  # fmt: skip
    assert code == 3
    return tmp_path / "tokens"


def run(tokens: Path, model: Path, output: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = embed.main(["--input", str(tokens), "--output", str(output), "--model", str(model), "--cache", "none",
                       "--no-progress", *options])  # fmt: skip
    summary = output / "_tokzip" / "summary.json"
    return code, json.loads(summary.read_text()) if summary.exists() else {}


def described(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pq.read_metadata(next(output.glob("*.parquet"))).metadata[b"tokzip.model"])
    return found


@pytest.mark.parametrize(("least", "taken"), [(0.9, "bf16"), (1.1, "fp32")])
def test_auto_is_settled_by_the_jobs_rows_and_kept(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, taken: str
) -> None:
    monkeypatch.setattr(model_module, "has_bf16", lambda device: True)
    monkeypatch.setattr(model_module, "LEAST_COSINE", least)
    code, summary = run(tokens, tiny_with_specials, tmp_path / "out")
    assert (code, summary["rows_out"], summary["precision"]) == (0, 100, taken)
    assert 0.99 < summary["lowest_cosine"] < 1
    model = load_model(str(tiny_with_specials), precision=taken)
    assert described(tmp_path / "out")["fingerprint"] == model.fingerprint
    assert described(tmp_path / "out")["precision"] == taken
    assert {"beam", "model", "lookup", "decode", "read", "write"} <= set(summary["seconds"])
    assert summary["model_tokens_per_second"] > 0

    monkeypatch.setattr(model_module, "LEAST_COSINE", 2 - least)  # another choice, were it asked again
    code, again = run(tokens, tiny_with_specials, tmp_path / "out")
    assert (code, again["splits_done_now"]) == (0, 0)
    assert (again["precision"], again["lowest_cosine"]) == (taken, summary["lowest_cosine"])
    other = {"fp32": "bf16", "bf16": "fp32"}[taken]
    assert run(tokens, tiny_with_specials, tmp_path / "out", "--precision", other)[0] == 1


def test_changed_weights_are_noticed_in_the_same_process(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_with_specials, tmp_path / "model")
    assert run(tokens, folder, tmp_path / "before")[0] == 0
    change_a_weight(folder)
    assert run(tokens, folder, tmp_path / "after")[0] == 0
    precision = described(tmp_path / "after")["precision"]
    expected = load_model(str(folder), precision=precision).fingerprint
    assert described(tmp_path / "after")["fingerprint"] == expected != described(tmp_path / "before")["fingerprint"]
    assert run(tokens, folder, tmp_path / "before")[0] == 1
    assert "model" in capsys.readouterr().err


def test_nothing_of_a_run_stays_loaded(tokens: Path, tiny_with_specials: Path, tmp_path: Path) -> None:
    before = _loaded.keys() - set()
    assert run(tokens, tiny_with_specials, tmp_path / "out")[0] == 0
    assert run(tokens, tiny_with_specials, tmp_path / "out", "--precision", "auto", "--dimensions", "3")[0] == 1
    assert _loaded.keys() == before


def test_the_share_of_matrix_products_is_measured_where_it_is_worth_it(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "matrix_product_share" not in run(tokens, tiny_with_specials, tmp_path / "short")[1]
    monkeypatch.setattr(embed, "_SECONDS_WORTH_MEASURING", 0)
    measured, seen = EmbeddingModel.matrix_product_seconds, []
    monkeypatch.setattr(EmbeddingModel, "matrix_product_seconds", lambda model: seen.append(measured(model)) or 10.0)
    _, summary = run(tokens, tiny_with_specials, tmp_path / "out", "--precision", "fp32")
    assert seen[0] > 0
    assert summary["matrix_product_share"] == pytest.approx(10 * summary["model_tokens_per_second"], rel=0.01, abs=10)


def test_types_and_dimensions_reach_the_files(tokens: Path, tiny_with_specials: Path, tmp_path: Path) -> None:
    code, _ = run(tokens, tiny_with_specials, tmp_path / "out", "--output-type", "int8", "--dimensions", "16")
    assert code == 0
    schema = pq.read_table(tmp_path / "out").schema
    assert schema.field("embedding").type == pa.list_(pa.int8(), 16)
    assert schema.field("embedding_scale").type == pa.float32()
    assert (described(tmp_path / "out")["output_type"], described(tmp_path / "out")["dimension"]) == ("int8", 16)


def test_a_model_that_expects_other_texts_is_told(tokens: Path, tiny_with_specials: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_with_specials, tmp_path / "model")
    assert "texts_expected" not in run(tokens, model, tmp_path / "before")[1]
    (model / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert run(tokens, model, tmp_path / "out")[1]["texts_expected"] == ["lower case"]


def test_tokens_of_another_vocabulary_are_refused_before_any_work(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tiny_with_specials, tmp_path / "model")
    parts = json.loads((other / "tokenizer.json").read_text())
    ids = parts["model"]["vocab"]
    first, second = sorted(ids, key=ids.__getitem__)[-2:]
    ids[first], ids[second] = ids[second], ids[first]
    (other / "tokenizer.json").write_text(json.dumps(parts))
    assert run(tokens, other, tmp_path / "out")[0] == 1
    assert "another vocabulary" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_no_token_file_is_named(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jsonl").write_text('{"tokens": [1, 2]}\n')
    shutil.copy(next(tokens.glob("*.parquet")), tmp_path / "mixed" / "b.parquet")
    assert run(tmp_path / "mixed", tiny_with_specials, tmp_path / "out")[0] == 1
    error = capsys.readouterr().err
    assert "a.jsonl: " in error
    assert "Traceback" not in error


def test_the_output_of_both_stages_is_taken_for_its_tokens(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path
) -> None:
    (tmp_path / "both").mkdir()
    shutil.copytree(tokens, tmp_path / "both" / "tokens")
    assert run(tmp_path / "both", tiny_with_specials, tmp_path / "out")[1]["rows_out"] == 100


def test_dimensions_that_the_model_lacks_are_refused_before_any_work(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = run(tokens, tiny_with_specials, tmp_path / "out", "--dimensions", "99")
    assert code == 1
    assert "99 dimensions: the model's vectors have 32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rows_to_calibrate_on_are_those_that_decode(monkeypatch: pytest.MonkeyPatch, tokens: Path) -> None:
    url = str(next(tokens.glob("*.parquet")))
    codebook, _ = embed._token_data_set(str(tokens))
    planned = embed.splits.plan(embed.splits.find_shards([url]), lambda schema: ["tokens"], 1 << 40, False)
    rows = embed._first_rows(planned, "tokens", codebook)
    assert rows is not None
    assert len(rows) == 100
    assert rows.lengths.sum() == 98

    def corrupt(*_: Any) -> None:
        raise embed.tz.CorruptBlobError("damaged")

    monkeypatch.setattr(embed.tz, "decode", corrupt)
    assert embed._first_rows(planned, "tokens", codebook) is None


def test_a_damaged_first_file_is_a_dead_letter(tokens: Path, tiny_with_specials: Path, tmp_path: Path) -> None:
    good = tokens / "t.parquet"
    data = bytearray(good.read_bytes())
    data[60] ^= 255  # of its first page
    (tokens / "a.parquet").write_bytes(data)
    code, summary = run(tokens, tiny_with_specials, tmp_path / "out", "--on-bad-shard", "skip")
    assert (code, summary["rows_out"], summary["bad_shards"]) == (3, 100, 1)


def test_a_token_file_that_got_lost_does_not_retire_its_embeddings(
    tokens: Path, tiny_with_specials: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tokens, tiny_with_specials, tmp_path / "out")[0] == 0
    (tokens / "t.parquet").unlink()
    assert run(tokens, tiny_with_specials, tmp_path / "out")[0] == 1
    assert "t.parquet is no longer there" in capsys.readouterr().err
    assert (tmp_path / "out" / "t.parquet").exists()


def test_a_model_that_gives_no_vectors_of_ids_alone_is_refused(
    tokens: Path, tmp_path: Path, tiny_with_specials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "t5"
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 200}
    transformers.AutoModel.from_config(transformers.T5Config(**small)).save_pretrained(folder)
    shutil.copy(tiny_with_specials / "tokenizer.json", folder)
    assert run(tokens, folder, tmp_path / "out")[0] == 1
    assert "gives no vectors for rows of ids" in capsys.readouterr().err
