"""A cache of byte strings by 32-byte keys, in layers. Imports pyarrow; lmdb and xxhash for a disk layer."""

from tokzip_core.cache.layer import CacheError, CacheLayer
from tokzip_core.cache.layered import LayeredCache
from tokzip_core.cache.memory import MemoryLayer
from tokzip_core.cache.spec import CacheSpec, CacheSpecError, parse_cache_spec

__all__ = [
    "CacheError",
    "CacheLayer",
    "CacheSpec",
    "CacheSpecError",
    "LayeredCache",
    "MemoryLayer",
    "parse_cache_spec",
]
