"""Token id rows to vectors, each distinct row computed once. Imports torch; only `handler` imports Beam."""

from pipelines.inference.encoder import CachedEncoder
from pipelines.inference.model import EmbeddingModel, check_model, load_model
from pipelines.inference.settings import ModelError, Settings

__all__ = ["CachedEncoder", "EmbeddingModel", "ModelError", "Settings", "check_model", "load_model"]
