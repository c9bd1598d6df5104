"""Vectors equal those of the model library's plain call, whatever is packed with a row."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from made_up import random_rows
from transformers import AutoModel, AutoTokenizer

from pipelines.inference import CachedEncoder, EmbeddingModel, ModelError, check_model, load_model, packed
from pipelines.inference.rows import Rows, from_sequences

WORDS = ["the", "river", "ran", "past", "an", "old", "mill,", "where", "1,204", "birds", "(mostly", "rooks)", "slept"]
TEXTS = [
    " ".join(WORDS[(i * j) % len(WORDS)] for j in range(n)) for i, n in enumerate((0, 1, 2, 3, 5, 8, 30, 90, 300) * 4)
]


PACKED = [
    "bert", "roberta", "distilbert", "electra", "albert", "xlm-roberta", "camembert", "ernie", "nomic", "modernbert"
]  # fmt: skip


def load_exact(folder: Path, **options) -> EmbeddingModel:
    return load_model(str(folder), precision="fp32", **options)


def plain(folder: Path, rows: list[np.ndarray], pooling: str = "mean", pad: int = 0) -> np.ndarray:
    """Row by row through the untouched library."""
    network = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    vectors = []
    with torch.inference_mode():
        for row in rows:
            hidden = network(input_ids=torch.tensor(row[None].astype(np.int64))).last_hidden_state[0]
            vectors.append((hidden.mean(0) if pooling == "mean" else hidden[0]).numpy())
    return np.stack(vectors)


def test_real_model_equals_plain_transformers_in_padded_batches(model_dir: Path, minilm: EmbeddingModel) -> None:
    tokenizer, network = AutoTokenizer.from_pretrained(model_dir), AutoModel.from_pretrained(model_dir).eval()
    expected = []
    for start in range(0, len(TEXTS), 8):
        batch = tokenizer(TEXTS[start : start + 8], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = network(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        expected.append(torch.nn.functional.normalize(mean).numpy())
    bare = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    bare.no_truncation()
    bare.no_padding()
    rows = from_sequences([bare.encode(t, add_special_tokens=False).ids for t in TEXTS])
    vectors = minilm.embed(rows)
    assert minilm.packed
    assert minilm.settings.max_length == 256
    assert (vectors * np.concatenate(expected)).sum(axis=1).min() >= 0.99999
    assert np.abs(vectors - np.concatenate(expected)).max() < 1e-5


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_equals_row_by_row(tiny, kind: str, pooling: str) -> None:
    model = load_exact(tiny(kind), pooling=pooling, batch_tokens=150)
    rows = random_rows([1, 1, 2, 64, 3, 7, 7, 7, 20, 33, 64, 5, 12], 200)
    assert model.packed
    assert np.abs(model.embed(from_sequences(rows)) - plain(tiny(kind), rows, pooling)).max() < 2e-5


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2"])
def test_models_that_attend_in_another_way_get_padded_batches(tiny, kind: str) -> None:
    model = load_exact(tiny(kind), batch_tokens=150)
    rows = random_rows([1, 1, 2, 64, 3, 7, 7, 7, 20, 33, 64, 5, 12], 200)
    assert model.batches == "padded"
    assert np.abs(model.embed(from_sequences(rows)) - plain(tiny(kind), rows)).max() < 2e-5


@pytest.mark.parametrize("kind", ["fnet", "convbert"])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_models_that_read_the_padding_get_rows_of_equal_length(
    tiny, kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(tiny(kind)), precision=precision, batch_tokens=150)
    rows = random_rows([1, 1, 2, 64, 3, 7, 7, 7, 20, 33, 64, 5, 12], 200)
    expected = plain(tiny(kind), rows)
    assert model.batches == "equal length"
    assert not model.exact
    pooled, seen = EmbeddingModel._pooled, []
    note = lambda model, rows, is_packed: seen.append(rows.lengths.tolist()) or pooled(model, rows, is_packed)  # noqa: E731
    monkeypatch.setattr(EmbeddingModel, "_pooled", note)
    far = 2e-5 if model.precision == "fp32" else 0.1
    assert np.abs(model.embed(from_sequences(rows)) - expected).max() < far * max(1, np.abs(expected).max())
    assert sorted(seen) == [[1, 1], [2], [3], [5], [7, 7, 7], [12], [20], [33], [64, 64]]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_vectors_do_not_keep_what_they_were_pooled_from(tiny, kind: str, pooling: str) -> None:
    model = load_exact(tiny(kind), pooling=pooling)
    with torch.inference_mode():
        vectors = model._pooled(from_sequences(random_rows([7, 30, 40], 200)), model.packed)
    assert vectors.untyped_storage().nbytes() <= 4 * vectors.numel() * 2  # as much again for what fills up


def test_positions_of_roberta_skip_padding_tokens_inside_a_row(tiny) -> None:
    row = random_rows([12], 200)[0]
    row[[3, 7]] = 1
    model = load_exact(tiny("roberta"))
    assert model.packed
    assert np.abs(model.embed(from_sequences([row])) - plain(tiny("roberta"), [row])).max() < 2e-5


def test_the_company_of_a_row_does_not_change_its_bits(minilm: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    rows = random_rows([*range(0, 40), *rng.integers(0, 300, 40)], 30_000)
    expected = minilm.embed(from_sequences(rows))
    assert minilm.exact
    alone = np.concatenate([minilm.embed(from_sequences([r])) for r in rows])
    assert np.array_equal(alone, expected)
    for batch_tokens in (40, 700, 5000):
        order = rng.permutation(len(rows))[: len(rows) - 7]
        monkeypatch.setattr(minilm, "batch_tokens", batch_tokens)
        assert np.array_equal(minilm.embed(from_sequences([rows[i] for i in order])), expected[order])


@pytest.mark.parametrize("kind", ["odd-nomic", "odd-modernbert"])
def test_bits_do_not_depend_on_company_where_sizes_fill_no_vector(tiny, kind: str) -> None:
    model = load_exact(tiny(kind))
    if not model.prepacked:
        pytest.skip("this processor or torch has no prepacked linear layers")
    assert model.exact
    rng = np.random.default_rng(1)
    rows = random_rows([*range(1, 65)] * 2, 200)
    expected = model.embed(from_sequences(rows))
    for size in (1, 2, 5, 17):
        order = rng.permutation(len(rows))
        for part in np.array_split(order, len(rows) // size):
            assert np.array_equal(model.embed(from_sequences([rows[i] for i in part])), expected[part])


class Uneven(torch.nn.Module):
    """An activation that rounds up the elements which fill no vector of 32; or all, where several threads share."""

    def __init__(self, on_threads: bool) -> None:
        super().__init__()
        self.on_threads = on_threads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.relu(x).flatten()
        last = slice(None) if self.on_threads else slice(y.numel() // 32 * 32, None)
        if not self.on_threads or torch.get_num_threads() > 1:
            y[last] = torch.nextafter(y[last], torch.tensor(torch.inf))
        return y.view(x.shape)


@pytest.mark.parametrize("on_threads", [False, True])
def test_bits_that_depend_on_company_are_noticed(tiny, on_threads: bool) -> None:
    network = AutoModel.from_pretrained(tiny("odd-nomic"))
    for layer in network.layers:
        layer.mlp.act_fn = Uneven(on_threads)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model = EmbeddingModel(network, load_exact(tiny("odd-nomic")).settings, precision="fp32")
        assert model.packed
        assert model.exact == on_threads  # a batch that threads would share is left to one of them
        if on_threads:
            rows = random_rows([1, 2, 3], 200)
            many = model.embed(from_sequences(rows * 400))[:3]
            assert np.array_equal(model.embed(from_sequences(rows)), many)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_wrong_packed_attention_is_noticed(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_as_one(*args, tokzip_groups, **kwargs):
        total = sum(n * k for _, n, k in tokzip_groups)
        return packed.attend(*args, tokzip_groups=[(0, 1, total)], **kwargs)

    monkeypatch.setitem(packed.AttentionInterface._global_mapping, packed.ATTENTION, all_as_one)
    assert not load_model(str(tiny("bert"))).packed


def test_padded_batches_stay_within_the_budget() -> None:
    rows = from_sequences(random_rows([1] * 500 + [60, 3, 200], 100))
    for padded in (False, True):
        batches = list(rows.batches(100, 2, padded))
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
        for b in batches:
            lengths = rows.lengths[b] + 2
            tokens = len(b) * lengths.max() if padded else lengths.sum()
            assert tokens <= 100 or len(b) == 1


@pytest.mark.parametrize("workers", [2, 7])
def test_batches_of_several_workers_end_together(workers: int) -> None:
    rows = from_sequences(random_rows(range(1, 250), 100))
    batches = list(rows.batches(2048 * workers, 2, False, workers))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(rows)))
    tokens = [int((rows.lengths[b] + 2).sum()) for b in batches]
    assert max(tokens) <= 2048
    assert tokens[-1] <= 512
    busy = np.zeros(workers)
    for n in tokens:
        busy[busy.argmin()] += n
    assert np.ptp(busy) <= 512


def test_batches_run_on_one_thread_each(minilm: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = from_sequences(random_rows([200] * 20, 30_000))
    pooled, seen = EmbeddingModel._pooled, []

    def note(model: EmbeddingModel, rows: Rows, is_packed: bool) -> np.ndarray:
        seen.append((threading.current_thread(), torch.get_num_threads()))
        return pooled(model, rows, is_packed)

    monkeypatch.setattr(EmbeddingModel, "_pooled", note)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        minilm.embed(rows)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert {n for _, n in seen} == {1}
    assert threading.main_thread() not in {thread for thread, _ in seen}


def test_threads_are_given_back_where_a_batch_fails(minilm: EmbeddingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(EmbeddingModel, "_pooled", fail)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(MemoryError):
            minilm.embed(from_sequences(random_rows([200] * 20, 30_000)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_truncation_keeps_room_for_special_tokens(minilm: EmbeddingModel) -> None:
    row = random_rows([1000], 30_000)[0]
    assert np.array_equal(minilm.embed(from_sequences([row])), minilm.embed(from_sequences([row[:254]])))
    assert not np.array_equal(minilm.embed(from_sequences([row])), minilm.embed(from_sequences([row[:253]])))


def test_windows_are_averaged_by_their_tokens(tiny) -> None:
    model = load_exact(tiny("bert"), max_length=10, long_rows="window", normalize="on")
    single = load_exact(tiny("bert"), max_length=10)
    row, short = random_rows([23, 4], 200)
    parts = single.embed(from_sequences([row[:10], row[10:20], row[20:]]))
    expected = np.average(parts, axis=0, weights=[10, 10, 3])
    vectors = model.embed(from_sequences([short, row, short]))
    assert np.abs(vectors[1] - expected / np.linalg.norm(expected)).max() < 1e-6
    assert np.array_equal(vectors[0], vectors[2])
    assert model.tokens(from_sequences([row, short])) == 27


def test_an_empty_row_is_the_special_tokens_alone(model_dir: Path, minilm: EmbeddingModel) -> None:
    expected = plain(model_dir, [np.array([101, 102])])[0]
    vector = minilm.embed(from_sequences([[]]))[0]
    assert np.abs(vector - expected / np.linalg.norm(expected)).max() < 1e-5


def test_settings_come_from_the_models_own_files(model_dir: Path, minilm: EmbeddingModel, tmp_path: Path) -> None:
    s = minilm.settings
    assert (s.pooling, s.normalize, s.max_length, s.prefix, s.suffix) == ("mean", True, 256, (101,), (102,))
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 99}')
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    changed = load_exact(copy).settings
    assert (changed.pooling, changed.max_length) == ("cls", 99)
    (copy / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    with pytest.raises(ModelError, match="pooling is"):
        load_model(str(copy))
    assert load_model(str(copy), pooling="mean").settings.pooling == "mean"
    for file in ("modules.json", "sentence_bert_config.json"):
        (copy / file).unlink()
    bare = load_exact(copy).settings
    assert (bare.pooling, bare.normalize, bare.max_length) == ("mean", False, 512)


def test_what_is_done_to_texts_by_default(model_dir: Path, minilm: EmbeddingModel, tmp_path: Path) -> None:
    assert (minilm.settings.expected_texts, minilm.settings.prepared(["A"])) == ("", ["A"])
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": true}')
    prompts = {"prompts": {"query": "Query: ", "passage": ""}, "default_prompt_name": "query"}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    model = load_exact(copy)
    assert model.settings.expected_texts == "the prompt 'Query: ', lower case"
    assert model.settings.prepared(["An ELK"]) == ["Query: an elk"]
    assert model.fingerprint == minilm.fingerprint
    assert np.array_equal(CachedEncoder(model).encode(["An ELK"]), CachedEncoder(minilm).encode(["query: an elk"]))
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    (copy / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match="leaves out the default prompt 'Query: '"):
        load_model(str(copy))


def test_an_older_layout_with_the_network_in_a_folder(model_dir: Path, minilm: EmbeddingModel, tmp_path: Path) -> None:
    copy, folder = shutil.copytree(model_dir, tmp_path / "copy"), tmp_path / "copy" / "0_Transformer"
    folder.mkdir()
    for file in [f for f in copy.iterdir() if f.is_file() and f.name != "modules.json"]:
        file.rename(folder / file.name)
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (copy / "modules.json").write_text(json.dumps(modules))
    model = load_exact(copy)
    assert model.settings == minilm.settings
    assert model.fingerprint == minilm.fingerprint
    options = {"pooling": "auto", "normalize": "auto", "max_length": None, "long_rows": "truncate"}
    found = check_model(str(copy), **options, batch_tokens=2048, precision="auto")
    assert found == (minilm.settings, 384)


def test_settings_without_a_tokenizer(tiny) -> None:
    s = load_exact(tiny("roberta")).settings
    assert (s.max_length, s.specials, s.vocabulary) == (64, 0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 65}, "positions for 64"),
        ({"pooling": "max"}, "expected one of"),
        ({"long_rows": "drop"}, "expected one of"),
        ({"batch_tokens": 0}, "at least 1"),
    ],
)
def test_what_a_model_cannot_do_is_refused(tiny, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(tiny("bert")), **options)


def test_no_room_beside_special_tokens(model_dir: Path) -> None:
    with pytest.raises(ModelError, match="no room"):
        load_model(str(model_dir), max_length=2)


def test_models_that_cannot_be_loaded(tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))
    pickled = shutil.copytree(tiny("bert"), tmp_path / "pickled")
    weights = AutoModel.from_pretrained(pickled).state_dict()
    (pickled / "model.safetensors").unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(str(pickled))


def test_weights_that_lack_a_tensor_are_refused(tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny("bert"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack .*encoder\.layer\.1"):
        load_model(str(folder))
