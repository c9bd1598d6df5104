"""How the backbone's tests write a Parquet shard. Imports pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(path: Path, column: Any, row_group_size: int | None = None, **columns: Any) -> Path:
    """A Parquet shard with a `text` column, page checksums and no compression (so that a flipped byte is in a page)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"text": column, **columns})
    pq.write_table(table, path, row_group_size=row_group_size, write_page_checksum=True, compression="none")
    return path
