"""A cache of vectors by 32-byte keys, in layers. Imports numpy and pyarrow; a layer's own needs when it is opened."""

from tokzip_core.cache.guarded import GuardedLayer
from tokzip_core.cache.layer import CacheError, CacheLayer
from tokzip_core.cache.layered import LayeredCache
from tokzip_core.cache.memory import MemoryLayer
from tokzip_core.cache.spec import CacheSpec, CacheSpecError, parse_cache_spec
from tokzip_core.cache.values import CODINGS
from tokzip_core.cache.vectors import VectorCache

__all__ = [
    "CODINGS",
    "CacheError",
    "CacheLayer",
    "CacheSpec",
    "CacheSpecError",
    "GuardedLayer",
    "LayeredCache",
    "MemoryLayer",
    "VectorCache",
    "parse_cache_spec",
]
