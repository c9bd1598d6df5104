"""The codecs by name. A new codec is one file here and one line below. Imports the codec files."""

from __future__ import annotations

from tokzip_core.codecs.arithmetic import Arithmetic
from tokzip_core.codecs.codec import Codec
from tokzip_core.codecs.context import Context
from tokzip_core.codecs.huffman import Huffman
from tokzip_core.codecs.huffman_o1 import HuffmanOrder1
from tokzip_core.codecs.raw import Raw
from tokzip_core.codecs.transformed import Transformed
from tokzip_core.errors import UnknownCodecError

_CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Raw(),
        Transformed("rle", Raw()),
        Huffman(),
        Transformed("rle+huffman", Huffman()),
        HuffmanOrder1(),
        Arithmetic(),
        Transformed("rle+arithmetic", Arithmetic()),
        Context(),
    )
}  # fmt: skip


def codecs() -> list[str]:
    """The names that `train` takes."""
    return list(_CODECS)


def get_codec(name: str, version: int | None = None) -> Codec:
    """The codec called `name`; raises UnknownCodecError where there is none, or not in `version`."""
    codec = _CODECS.get(name)
    if codec is None:
        raise UnknownCodecError(f"no codec is called {name!r}; there are {', '.join(_CODECS)}")
    if version not in (None, codec.version):
        raise UnknownCodecError(f"codec {name!r} is of version {codec.version} here; version {version} is asked for")
    return codec
