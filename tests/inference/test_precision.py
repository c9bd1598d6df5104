"""bf16 is close to fp32, taken by itself only where it is close enough, recorded, and part of the key."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import random_rows
from test_model import PACKED, plain

from pipelines.inference import EmbeddingModel, ModelError, linear, load_model, packed
from pipelines.inference import model as model_module
from pipelines.inference.rows import from_sequences

LENGTHS = [1, 1, 2, 64, 3, 7, 7, 7, 20, 33, 64, 5, 12]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def minilm16(model_dir: Path) -> EmbeddingModel:
    return load_model(str(model_dir), precision="bf16")


@pytest.mark.parametrize("kind", [*PACKED, "mpnet", "deberta-v2"])
def test_bf16_is_close_to_plain_fp32(tiny, kind: str) -> None:
    model = load_model(str(tiny(kind)), precision="bf16", batch_tokens=150)
    rows = random_rows(LENGTHS, 200)
    vectors = model.embed(from_sequences(rows))
    assert (model.precision, model.packed) == ("bf16", kind in PACKED)
    assert vectors.dtype == np.float32
    assert cosines(vectors, plain(tiny(kind), rows)).min() >= 0.999
    assert not np.array_equal(vectors, plain(tiny(kind), rows))


def test_bf16_of_a_real_model(minilm: EmbeddingModel, minilm16: EmbeddingModel) -> None:
    rows = from_sequences(random_rows([*range(40), 130, 256, 300, 300], 30_000))
    assert cosines(minilm16.embed(rows), minilm.embed(rows)).min() >= 0.9998


def test_the_company_of_a_row_does_not_change_its_bits_in_bf16(
    minilm16: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    rows = random_rows([*range(0, 40), *[77] * 9, *rng.integers(0, 300, 20)], 30_000)
    expected = minilm16.embed(from_sequences(rows))
    assert minilm16.exact
    alone = np.concatenate([minilm16.embed(from_sequences([r])) for r in rows])
    assert np.array_equal(alone, expected)
    for batch_tokens in (40, 700, 5000):
        order = rng.permutation(len(rows))[: len(rows) - 7]
        monkeypatch.setattr(minilm16, "batch_tokens", batch_tokens)
        assert np.array_equal(minilm16.embed(from_sequences([rows[i] for i in order])), expected[order])


def test_threads_do_not_change_a_rows_bits(minilm: EmbeddingModel, minilm16: EmbeddingModel) -> None:
    rows = from_sequences(random_rows([1, 5, 5, 40, 130, 254, 254], 30_000))
    threads = torch.get_num_threads()
    for model in (minilm, minilm16):
        expected = model.embed(rows)
        try:
            torch.set_num_threads(1)
            assert np.array_equal(model.embed(rows), expected)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("length", [40, 600])
def test_scores_are_held_for_few_rows_at_once(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 2, 5 * length + 3, 8).unbind()
    groups = [(0, 1, 3), (3, 5, length)]
    expected, _ = packed.attend(torch.nn.Module(), q, k, v, None, tokzip_groups=groups)
    sizes = []
    product = torch.baddbmm
    monkeypatch.setattr(
        torch, "baddbmm", lambda *a, **o: sizes.append(a[1].shape[0] * a[1].shape[1] ** 2) or product(*a, **o)
    )
    monkeypatch.setattr(packed, "_SCORES_AT_ONCE", 2 * 2 * length**2)
    out, _ = packed.attend(torch.nn.Module(), q, k, v, None, tokzip_groups=groups)
    assert torch.equal(out, expected)
    assert max(sizes) <= (4 * length**2 if length <= 512 else 18)
    plain_attention = torch.nn.functional.scaled_dot_product_attention
    alone = plain_attention(*(x[:, :, 3 : 3 + length] for x in (q, k, v))).transpose(1, 2)
    assert torch.allclose(out[:, 3 : 3 + length], alone, atol=1e-6)


def test_what_fills_a_batch_up_does_not_change_the_bits_of_its_rows(minilm: EmbeddingModel) -> None:
    rows, s = from_sequences(random_rows([3, 9, 9, 40], 30_000)), minilm.settings
    with torch.inference_mode():
        least, *more = (
            packed.run_packed(minilm.network, rows, s.prefix, s.suffix, "mean", least) for least in (69, 71, 111, 500)
        )
    assert all(torch.equal(vectors, least) for vectors in more)


@pytest.mark.parametrize("window", [None, 3])
def test_attention_over_rows_of_any_length_sees_what_that_of_groups_does(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dims = []

    def varlen(q, k, v, bounds, _bounds, longest, _longest, *, scale, window_size, **_):
        rows = []
        assert longest == 5
        dims.append(q.shape[-1])
        for start, end in pairwise(bounds.tolist()):
            place = torch.arange(end - start)
            seen = None if window_size[0] < 0 else (place - place[:, None]).abs() <= window_size[0]
            part = (x[start:end].transpose(0, 1) for x in (q, k, v))
            rows.append(torch.nn.functional.scaled_dot_product_attention(*part, seen, scale=scale).transpose(0, 1))
        return torch.cat(rows)

    monkeypatch.setattr(packed, "varlen_attn", varlen, raising=False)
    groups, bounds = [(0, 1, 2), (2, 2, 5)], torch.tensor([0, 2, 7, 12])
    for dim in (8, 12):
        q, k, v = torch.randn(3, 1, 2, 12, dim).bfloat16().unbind()
        given = (torch.nn.Module(), q, k, v, None, None, window, groups)
        assert torch.allclose(packed.attend(*given, bounds)[0], packed.attend(*given)[0], atol=0.02)
    assert dims == [8], "flash attention takes heads of a multiple of eight"


def test_precision_is_part_of_the_key(tiny) -> None:
    exact, fast = (load_model(str(tiny("bert")), precision=p) for p in ("fp32", "bf16"))
    assert exact.fingerprint != fast.fingerprint
    settled = load_model(str(tiny("bert")), precision="auto")
    assert settled.fingerprint == {"fp32": exact, "bf16": fast}[settled.precision].fingerprint


def test_auto_falls_back_to_fp32_where_calibration_fails(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "has_bf16", lambda device: True)
    monkeypatch.setattr(model_module, "LEAST_COSINE", 0.9)
    rows = from_sequences(random_rows(LENGTHS, 200))
    taken = load_model(str(tiny("bert")), precision="auto", calibration=rows)
    assert taken.precision == "bf16"
    assert 0.999 <= taken.cosine < 1
    monkeypatch.setattr(model_module, "LEAST_COSINE", (1 + taken.cosine) / 2)
    kept = load_model(str(tiny("bert")), precision="auto", calibration=rows)
    assert (kept.precision, kept.cosine, kept.packed) == ("fp32", taken.cosine, True)
    exact = load_model(str(tiny("bert")), precision="fp32")
    assert kept.fingerprint == exact.fingerprint
    assert np.array_equal(kept.embed(rows), exact.embed(rows))


def test_auto_is_fp32_on_a_processor_without_bf16(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "has_bf16", lambda device: False)
    assert load_model(str(tiny("bert"))).precision == "fp32"
    assert load_model(str(tiny("bert"))).cosine is None


def test_a_network_that_is_not_finite_in_bf16_stays_in_fp32(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: torch.nn.Module) -> None:
        next(network.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(model_module, "has_bf16", lambda device: True)
    monkeypatch.setattr(model_module, "_to_bf16", broken)
    model = load_model(str(tiny("bert")))
    assert (model.precision, model.cosine) == ("fp32", -1)
    assert np.isfinite(model.embed(from_sequences([[5, 6]]))).all()


@pytest.mark.parametrize("sample", [[], [[200]], [[200], [], [5, 999]]])
def test_a_sample_without_a_usable_row_is_made_up(tiny, sample: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "has_bf16", lambda device: True)
    cosine = load_model(str(tiny("bert")), calibration=from_sequences(sample)).cosine
    assert cosine == load_model(str(tiny("bert"))).cosine


def test_a_sample_may_begin_with_a_row_longer_than_the_sample(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "_CALIBRATION_TOKENS", 20)
    rows = random_rows([30, 5], 200)
    sample = load_model(str(tiny("bert")), precision="fp32")._sample(from_sequences(rows))
    assert np.array_equal(sample.values[sample.starts[0] :][: sample.lengths[0]], rows[0][:20])


def test_an_unknown_precision_is_refused(tiny) -> None:
    with pytest.raises(ModelError, match="expected one of auto, fp32, bf16"):
        load_model(str(tiny("bert")), precision="int8")


def test_layers_stay_plain_where_the_processor_refuses(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = from_sequences(random_rows(LENGTHS, 200))
    expected = load_model(str(tiny("bert")), precision="fp32")

    def refuse(layer: torch.nn.Linear, tokens: int) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(linear, "PackedLinear", refuse)
    model = load_model(str(tiny("bert")), precision="fp32")
    assert not model.prepacked
    assert np.abs(model.embed(rows) - expected.embed(rows)).max() < 1e-5
    assert model.fingerprint == expected.fingerprint


def test_packed_layers_compute_what_linear_layers_do() -> None:
    torch.manual_seed(0)
    shared = torch.nn.Linear(24, 40)
    network = torch.nn.Sequential(shared, torch.nn.ReLU(), torch.nn.Linear(40, 24, bias=False), shared)
    x = torch.randn(2, 7, 24)
    with torch.inference_mode():
        expected = network(x)
        if not linear.prepack(network, 64):
            pytest.skip("this processor or torch has no prepacked linear layers")
        assert network[0] is network[3]
        assert torch.allclose(network(x), expected, atol=1e-6)
        assert torch.allclose(network(x[:, :1]), expected[:, :1], atol=1e-6)


class Gated(torch.nn.Module):
    """A layer whose output another reads beside the GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.activation = torch.nn.Linear(24, 40), torch.nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return self.activation(y) * y


def test_an_activation_is_fused_where_it_alone_reads_a_layers_output() -> None:
    torch.manual_seed(0)
    shared = torch.nn.GELU()
    network = torch.nn.Sequential(
        torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 24), shared, shared, torch.nn.Linear(24, 24),
        torch.nn.GELU(approximate="tanh"), torch.nn.Linear(24, 24), torch.nn.SiLU(), torch.nn.Softsign(),
    )  # fmt: skip
    x = torch.randn(9, 24)
    for net, fused in ((network, {0: "gelu", 5: "gelu", 7: "swish"}), (torch.nn.Sequential(Gated()), {})):
        with torch.inference_mode():
            expected = net(x)
            if not linear.prepack(net, 64):
                pytest.skip("this processor or torch has no prepacked linear layers")
            linear.fuse_activations(net, lambda net=net: net(x).numpy())
            assert torch.allclose(net(x), expected, atol=1e-5)
            packed_layers = {name: m for name, m in net.named_modules() if isinstance(m, linear.PackedLinear)}
            assert {int(name): m.then[0] for name, m in packed_layers.items() if m.then[0] != "none"} == fused
            assert next(iter(packed_layers.values())).product(x).min() < -0.5  # of GELU, -0.17 is the least


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "count"), [("bert", 2), ("roberta", 2), ("distilbert", 2), ("modernbert", 0)])
def test_gelus_of_real_architectures_are_fused(tiny, kind: str, count: int, precision: str) -> None:
    if precision == "bf16" and not model_module.has_bf16("cpu"):
        pytest.skip("this processor has no bf16")
    model = load_model(str(tiny(kind)), precision=precision)
    if not model.prepacked:
        pytest.skip("this processor or torch has no prepacked linear layers")
    assert sum(m.then[0] == "gelu" for m in model.network.modules() if isinstance(m, linear.PackedLinear)) == count


def test_the_matrix_products_alone_take_less_than_the_model(minilm: EmbeddingModel) -> None:
    assert minilm.matrix_product_seconds(64) > 0


def test_every_call_of_a_shared_layer_counts() -> None:
    layer = torch.nn.Linear(8, 8)
    calls = []
    network = torch.nn.Sequential(layer, layer)
    original = linear._seconds
    linear._seconds = lambda *a: calls.append(a) or 1.0
    try:
        with torch.inference_mode():
            assert linear.bare_seconds(network, lambda: network(torch.zeros(3, 8)), rounds=2) == 2.0
    finally:
        linear._seconds = original
    assert len(calls) == 2
