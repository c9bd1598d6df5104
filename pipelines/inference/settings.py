"""How a model wants its rows: pooling, length, special tokens. Imports tokenizers, huggingface_hub.

Read from the model's own files, in the layout of sentence-transformers where it has one (`modules.json`,
`1_Pooling/config.json`, `sentence_bert_config.json`, `config_sentence_transformers.json`), else: mean pooling, no
normalisation, the length that the tokenizer or the positions allow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from pipelines.tokenizing.vocabulary import vocabulary_digest
from tokzip_core.errors import TokzipError

_log = logging.getLogger(__name__)

POOLINGS = ("mean", "cls")
LONG_ROWS = ("truncate", "window")


class ModelError(TokzipError):
    """A model that cannot be loaded, or not used as asked; the message names it and the cause."""


@dataclass(frozen=True)
class Settings:
    """`max_length` counts the special tokens `prefix` and `suffix` that every row is put between.

    `vocabulary` is the digest of the model's own tokenizer, None where it has none. `lower_case` and `prompt` are what
    sentence-transformers does to a text by default: lower it, and put the prompt before it. Of token ids that has
    been done before, or not at all.
    """

    pooling: str
    normalize: bool
    max_length: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    long_rows: str
    vocabulary: str | None
    lower_case: bool = False
    prompt: str = ""

    def prepared(self, texts: Iterable[str]) -> list[str]:
        """Texts as the model's tokenizer is to see them."""
        return [self.prompt + (text.lower() if self.lower_case else text) for text in texts]

    @property
    def expected_texts(self) -> str:
        """What `prepared` does, for people; empty where it does nothing."""
        said = [f"the prompt {self.prompt!r}"] * bool(self.prompt) + ["lower case"] * self.lower_case
        return ", ".join(said)

    @property
    def specials(self) -> int:
        return len(self.prefix) + len(self.suffix)


def find(model: str, file: str) -> Path | None:
    """A file of a model in a folder or on the Hugging Face hub; None where the model has no such file."""
    if Path(model).is_dir():
        path = Path(model, file)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(model, file))
    except LocalEntryNotFoundError as error:
        if _known_absent(model, file):
            return None
        raise ModelError(f"model {model}: the hub cannot be reached, and {file} is not in its cache") from error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"model {model}: neither a folder nor a name that the hub gives: {error}") from error


def transformer_folder(model: str) -> str:
    """The folder within the model where its network and tokenizer are: "" at its top, or an older "0_Transformer"."""
    return _modules(model).get("Transformer", "")


def read_settings(
    model: str,
    capacity: int | None,
    pooling: str = "auto",
    normalize: str = "auto",
    max_length: int | None = None,
    long_rows: str = "truncate",
) -> Settings:
    """The model's own settings where asked for `auto` or None, else the ones given.

    capacity: the longest row that the model has positions for. Raises ModelError.
    """
    for name, value, known in (
        ("pooling", pooling, ("auto", *POOLINGS)),
        ("normalize", normalize, ("auto", "on", "off")),
        ("long_rows", long_rows, LONG_ROWS),
    ):
        if value not in known:
            raise ModelError(f"{name} {value!r}: expected one of {', '.join(known)}")
    kinds = _modules(model)
    folder = kinds.get("Transformer", "")
    if others := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(f"model {model}: has the modules {sorted(others)}, which tokzip cannot run")
    if pooling == "auto":
        pooling = _pooling(model, kinds["Pooling"]) if "Pooling" in kinds else "mean"
    tokenizer = _tokenizer(model, folder)
    prefix, suffix = _specials(model, tokenizer) if tokenizer else ((), ())
    sentence = _read(model, _inside(folder, "sentence_bert_config.json")) or {}
    own = sentence.get("max_seq_length")
    if own is None:
        own = (_read(model, _inside(folder, "tokenizer_config.json")) or {}).get("model_max_length")
    limits = [int(n) for n in (own, capacity) if n is not None and n < 10**9]  # "no limit" is written as 1e30
    length = min(limits, default=512) if max_length is None else max_length
    if capacity is not None and length > capacity:
        raise ModelError(f"model {model}: a length of {length} tokens, but it has positions for {capacity}")
    if length <= len(prefix) + len(suffix):
        raise ModelError(f"model {model}: a length of {length} leaves no room beside the special tokens")
    return Settings(
        pooling,
        "Normalize" in kinds if normalize == "auto" else normalize == "on",
        length,
        prefix,
        suffix,
        long_rows,
        vocabulary_digest(tokenizer) if tokenizer else None,
        bool(sentence.get("do_lower_case")),
        _prompt(model, kinds),
    )


def _known_absent(model: str, file: str) -> bool:
    """Whether the hub has said before that there is no such file: its cache keeps a marker."""
    found = try_to_load_from_cache(model, file)
    return found is not None and not isinstance(found, str)


def _modules(model: str) -> dict[str, str]:
    """The modules of a model of sentence-transformers, each with its folder, by the last part of its type."""
    return {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in _read(model, "modules.json") or []}


def _inside(folder: str, file: str) -> str:
    return f"{folder}/{file}" if folder else file


def _read(model: str, file: str) -> Any:
    path = find(model, file)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"model {model}: {file} is not JSON: {error}") from error


def _pooling(model: str, folder: str) -> str:
    config = _read(model, f"{folder}/config.json") or {}
    modes = config.get("pooling_mode")  # a name or several; before version 6, one flag a mode
    names = {"cls_token": "cls", "mean_tokens": "mean"}
    if modes is None:
        flags = (k.removeprefix("pooling_mode_") for k, on in config.items() if k.startswith("pooling_mode_") and on)
        modes = [names.get(f, f) for f in flags]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ModelError(f"model {model}: its pooling is {modes}; tokzip has {', '.join(POOLINGS)}")
    return str(modes[0])


def _prompt(model: str, kinds: dict[str, str]) -> str:
    """What is put before every text by default. Raises ModelError where pooling is to leave its tokens out."""
    config = _read(model, "config_sentence_transformers.json") or {}
    prompt = str((config.get("prompts") or {}).get(config.get("default_prompt_name")) or "")
    pooling = _read(model, f"{kinds['Pooling']}/config.json") or {} if "Pooling" in kinds else {}
    if config.get("truncate_dim"):
        _log.warning("model %s: its truncate_dim %s is not applied: vectors are whole", model, config["truncate_dim"])
    if prompt and not pooling.get("include_prompt", True):
        raise ModelError(f"model {model}: its pooling leaves out the default prompt {prompt!r}, which tokzip cannot")
    return prompt


def _tokenizer(model: str, folder: str) -> tokenizers.Tokenizer | None:
    older = ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
    if path := find(model, _inside(folder, "tokenizer.json")):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    elif any(find(model, _inside(folder, f)) for f in older):
        from transformers import AutoTokenizer  # converts the older files

        tokenizer = tokenizers.Tokenizer.from_str(
            AutoTokenizer.from_pretrained(model, subfolder=folder).backend_tokenizer.to_str()
        )
    else:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _specials(model: str, tokenizer: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer's template for one sequence puts before and behind a row's ids."""
    bare, full = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare and len(bare):
            return tuple(full[:at]), tuple(full[at + len(bare) :])
    raise ModelError(f"model {model}: its tokenizer does more to a row than put special tokens around it")
