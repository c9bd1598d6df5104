"""Text columns to token id columns, with whichever engine is fast and right. Imports tokenizers and the engines."""

from pipelines.tokenizing.tokenizer import ENGINES, Tokenizer, load_tokenizer

__all__ = ["ENGINES", "Tokenizer", "load_tokenizer"]
