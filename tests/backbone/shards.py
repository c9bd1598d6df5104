"""How the backbone's tests write a Parquet shard, and compare what came of it. Imports pyarrow."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(path: Path, column: Any, row_group_size: int | None = None, **columns: Any) -> Path:
    """A Parquet shard with a `text` column, page checksums and no compression (so that a flipped byte is in a page)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": column, **columns})
    # Elsewhere first: who watches the folder finds it whole.
    scratch = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, scratch, row_group_size=row_group_size, write_page_checksum=True, compression="none")
    return scratch.replace(path)


def bytes_below(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file, by its path."""
    paths = [p for p in Path(folder).rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
