"""The one-line description of a stack of layers, as `--cache` takes it. Imports the layers."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from tokzip_core.cache.guarded import AbsentLayer
from tokzip_core.cache.layer import CacheError, CacheLayer
from tokzip_core.cache.layered import LayeredCache
from tokzip_core.cache.memory import MemoryLayer

_log = logging.getLogger("tokzip.cache")
_UNITS = {
    f"{p}{'i' * (base == 1024)}B": base**i for base in (1000, 1024) for i, p in enumerate(("K", "M", "G", "T"), 1)
}
_UNITS = {"B": 1, "kB": 1000, **_UNITS}
MIN_DISK_BYTES = 1 << 20
EXAMPLE = '"memory:256MB,disk:PATH:20GB,redis://HOST:6379/0,folder:URL", or "none"'
_REDIS = ("redis", "rediss", "unix")


class CacheSpecError(CacheError, ValueError):
    """A description of a cache that means nothing; the message says what was expected."""


@dataclass(frozen=True)
class LayerSpec:
    """kind: "memory", "disk", "redis" or "folder"; max_bytes: of memory and disk; place: path or URL of the others."""

    kind: str
    max_bytes: int = 0
    place: str = ""

    def open(self) -> CacheLayer:
        # What a layer stands on is needed by those alone who ask for it.
        if self.kind == "disk":
            from tokzip_core.cache.disk import DiskLayer

            return DiskLayer(self.place, self.max_bytes)
        if self.kind == "redis":
            from tokzip_core.cache.redis import RedisLayer

            return RedisLayer(self.place)
        if self.kind == "folder":
            from tokzip_core.cache.folder import FolderLayer

            return FolderLayer(self.place)
        return MemoryLayer(self.max_bytes)

    def __str__(self) -> str:
        """For people: without the user and password of a URL."""
        size = f"{self.max_bytes / 1e6:g}MB"
        if self.kind == "memory":
            return f"memory:{size}"
        place = re.sub(r"(?<=://)[^/]*@", "", self.place)
        return (
            place.partition("?")[0]
            if self.kind == "redis"
            else f"{self.kind}:{place}" + f":{size}" * bool(self.max_bytes)
        )


@dataclass(frozen=True)
class CacheSpec:
    """A stack of layers, the fastest first; small and picklable. None at all means no cache."""

    layers: tuple[LayerSpec, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.layers)) or "none"

    def open(self) -> LayeredCache:
        """The layers; one that the system keeps from being opened (a read-only disk, say) is warned of, and holds
        nothing. Raises CacheError where a layer cannot be what is asked for."""
        opened: list[CacheLayer] = []
        try:
            for layer in self.layers:
                try:
                    opened.append(layer.open())
                except CacheError as error:
                    if not isinstance(error.__cause__, OSError):
                        raise
                    _log.warning("%s: the job goes on without it", error)
                    opened.append(AbsentLayer(layer.kind))
        except BaseException:
            for done in opened:
                done.close()
            raise
        return LayeredCache(opened)


def parse_cache_spec(text: str) -> CacheSpec:
    """Layers separated by commas, looked up in that order; or `none`.

    `memory:SIZE`; `disk:PATH:SIZE`; `redis://[user:password@]host:port/db[?ttl=SECONDS]` (also rediss, unix);
    `folder:URL`, or a bare URL of any other scheme, for a folder of any fsspec store. SIZE is a number with B, KB, MB,
    GB, TB (powers of 1000) or KiB, MiB, GiB, TiB. PATH is a folder (`~` is the home folder), made absolute. There may
    be no comma in any. Raises CacheSpecError.
    """
    if text.strip() == "none":
        return CacheSpec(())
    layers = tuple(_layer(part.strip()) for part in text.split(","))
    names = [(layer.kind, layer.place) for layer in layers]
    if len(set(names)) < len(names):
        raise CacheSpecError(f"cache {text!r} names a layer twice")
    return CacheSpec(layers)


def _layer(part: str) -> LayerSpec:
    kind, _, rest = part.partition(":")
    if kind == "memory" and rest:
        return LayerSpec("memory", _size(rest, part))
    if kind == "disk":
        path, _, size = rest.rpartition(":")
        if path:
            max_bytes = _size(size, part)
            if max_bytes < MIN_DISK_BYTES:
                raise CacheSpecError(f"cache layer {part!r}: a disk layer needs at least 1MiB")
            return LayerSpec("disk", max_bytes, str(Path(path).expanduser().absolute()))
    if kind in _REDIS and rest.startswith("//") and rest != "//":
        return LayerSpec("redis", place=part)
    if kind == "folder" and rest:
        return _folder(rest)
    if re.fullmatch(r"[a-z][a-z0-9+.-]*", kind) and rest.startswith("//") and rest != "//":
        return _folder(part)
    raise CacheSpecError(f"cache layer {part!r}: expected {EXAMPLE}")


def _folder(place: str) -> LayerSpec:
    if "://" not in place:
        place = str(Path(place).expanduser().absolute())
    return LayerSpec("folder", place=place)


def _size(text: str, part: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", text)
    if not match or match[2] not in _UNITS or not (size := int(float(match[1]) * _UNITS[match[2]])):
        raise CacheSpecError(f"cache layer {part!r}: {text!r} is no size such as 256MB or 20GB")
    return size
