"""Models for the inference tests: the real one, and tiny ones of many architectures with random weights."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

from pipelines.inference import EmbeddingModel, load_model

_SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**_SMALL, max_position_embeddings=64),
    "roberta": lambda: transformers.RobertaConfig(**_SMALL, max_position_embeddings=66, pad_token_id=1),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=200, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
    ),
    "electra": lambda: transformers.ElectraConfig(**_SMALL, embedding_size=16, max_position_embeddings=64),
    "albert": lambda: transformers.AlbertConfig(**_SMALL, embedding_size=16, max_position_embeddings=64),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**_SMALL, max_position_embeddings=66, pad_token_id=1),
    "camembert": lambda: transformers.CamembertConfig(**_SMALL, max_position_embeddings=66, pad_token_id=1),
    "ernie": lambda: transformers.ErnieConfig(**_SMALL, max_position_embeddings=64, pad_token_id=0),
    "nomic": lambda: transformers.NomicBertConfig(**_SMALL, max_position_embeddings=64),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_SMALL,
        max_position_embeddings=64,
        local_attention=16,
        global_attn_every_n_layers=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "odd-nomic": lambda: transformers.NomicBertConfig(
        **_SMALL | {"hidden_size": 40, "intermediate_size": 72}, max_position_embeddings=64
    ),
    "odd-modernbert": lambda: transformers.ModernBertConfig(
        **_SMALL | {"hidden_size": 40, "intermediate_size": 72}, max_position_embeddings=64, pad_token_id=0
    ),
    "fnet": lambda: transformers.FNetConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, intermediate_size=64, max_position_embeddings=64
    ),
    "convbert": lambda: transformers.ConvBertConfig(**_SMALL, embedding_size=32, max_position_embeddings=64),
    "mpnet": lambda: transformers.MPNetConfig(**_SMALL, max_position_embeddings=66),
    "deberta-v2": lambda: transformers.DebertaV2Config(
        **_SMALL, max_position_embeddings=64, relative_attention=True, pos_att_type=["p2c", "c2p"]
    ),
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """`tiny("bert")`: the folder of a model with random weights and no tokenizer, one for all tests. Read only."""

    @functools.cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / kind
        torch.manual_seed(0)
        config = CONFIGS[kind]()
        config.initializer_range = 0.2  # large enough that attention and positions matter
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_with_specials(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT with a tokenizer that puts ids 1 and 2 around a row. Read only."""
    folder = shutil.copytree(tiny("bert"), tmp_path_factory.mktemp("models") / "specials")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, "[PAD]"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def minilm(model_dir: Path) -> EmbeddingModel:
    return load_model(str(model_dir), precision="fp32")
