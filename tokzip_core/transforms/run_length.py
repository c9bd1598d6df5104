"""Run-length: a token that repeats is written once, then how often more. Imports numpy, columns, errors, kernels.

The repeats are symbols of their own, ids that the training sample does not use, so that a model can learn them: 1 to
255 repeats, 256 to 15 * 256 in steps of 256 (their sum counts). One more, FILL, is padding: the commonest end of a row,
one token up to one length. A token that happens to be one of these ids is written as LITERAL and its distance from the
first of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np

from tokzip_core.columns import MAX_BYTES, MAX_ID, Column, Int32s, Int64s
from tokzip_core.errors import CorruptBlobError, CorruptCodebookError, InvalidTokensError
from tokzip_core.models.order0 import Order0

SHORTEST = 2  # repeats: one alone is as short as its run symbol
NO_RUNS = 1 << 62  # repeats: more than a row can have
EXPANSION = 1 << 12  # tokens that one byte of a blob may stand for at most
SIZE = 12  # bytes of the description
_FAULTS = {
    1: "a run before any token",
    2: "a literal that is none",
    3: "a fill that is not the last or has nothing to fill",
    4: f"more than {EXPANSION} tokens a byte",
}


@dataclass(frozen=True)
class RunLength:
    """base: the first run symbol; pad, fill: the token, and the length of the row, that FILL stands for; 0, 0: none."""

    base: int
    pad: int
    fill: int

    def to_bytes(self) -> bytes:
        return struct.pack("<III", self.base, self.pad, self.fill)

    @staticmethod
    def from_bytes(data: bytes) -> RunLength:
        from tokzip_core.kernels.run_length import SYMBOLS

        base, pad, fill = struct.unpack("<III", data)
        if base > MAX_ID + 1 - SYMBOLS or pad > MAX_ID or fill > EXPANSION:
            raise CorruptCodebookError(f"run symbols from {base} on, filling up to {fill} tokens with {pad}")
        return RunLength(base, pad, fill)

    def collapse(self, column: Column, shortest: int = SHORTEST) -> Column:
        """The symbols (uint32) of token rows; runs of fewer than `shortest` repeats are left as they are."""
        return collapse(column, self, shortest)[0]

    def collapse_after(self, column: Column, spelled: Int64s) -> Column:
        """The symbols (uint32) of rows without FILL, runs collapsed only after the first `spelled` tokens of each."""
        cuts = column.starts + spelled
        halves = np.stack((column.starts, cuts), 1).ravel(), np.stack((cuts, column.ends), 1).ravel()
        shortest = np.tile(np.array([NO_RUNS, SHORTEST]), len(column))
        symbols, _ = collapse(Column(column.values, *halves, None), replace(self, fill=0), shortest)
        return Column(symbols.values, symbols.starts[::2].copy(), symbols.ends[1::2].copy(), None)

    def expand(self, symbols: Column, sizes: Int64s) -> tuple[Int32s, Int64s]:
        """The tokens of rows of symbols (int32) that come from blobs of `sizes` bytes, and each row's end in them.

        Nothing is allocated before every row is seen to be sound, and no longer than EXPANSION tokens a byte.
        """
        from tokzip_core.kernels import run_length as kernels

        ends = np.empty(len(symbols), np.int64)
        rows = (symbols.values, symbols.starts, symbols.ends, self.base)
        fault, row = kernels.measure(*rows, self.fill, sizes * EXPANSION, ends)
        if fault:
            raise CorruptBlobError(f"row {row} is not a blob of this codebook: {_FAULTS[fault]}")
        total = int(ends[-1]) if ends.size else 0
        if total > MAX_BYTES:
            raise InvalidTokensError(f"{total} tokens in one array: pass fewer rows at a time")
        tokens = np.empty(total, np.int32)
        kernels.expand(*rows, np.int32(self.pad), ends, tokens)
        return tokens, ends


def collapse(column: Column, runs: RunLength, shortest: int | Int64s) -> tuple[Column, Int64s]:
    """`RunLength.collapse`, `shortest` for all rows or each, and the repeats in the run that ends a row; 0 for none."""
    from tokzip_core.kernels import run_length as kernels

    out = np.empty(2 * int((column.ends - column.starts).sum()), np.uint32)
    ends = np.empty(len(column), np.int64)
    last = np.empty(len(column), np.int64)
    rows = (column.values, column.starts, column.ends)
    every = np.full(len(column), shortest, np.int64)
    kernels.collapse(*rows, runs.base, runs.pad, runs.fill, every, out, ends, last)
    starts = np.concatenate((np.zeros(1, np.int64), ends))[:-1]
    return Column(out, starts, ends, column.valid), last


class RunLengthModel:
    """Counts what the coder behind the transform will see. The run symbols stand above all ids until `finish`."""

    _VIRTUAL = RunLength(MAX_ID + 1, 0, 0)

    def __init__(self) -> None:
        self.symbols = Order0()
        self.last_runs = Order0(np.uint64)  # of rows that end in a run: token << 32 | length << 16 | repeats
        self.tokens = 0

    def add(self, column: Column) -> None:
        symbols, last = collapse(column, self._VIRTUAL, SHORTEST)
        self.symbols.add(symbols)
        lengths = column.ends - column.starts
        padded = (last > 0) & (lengths < EXPANSION)
        tokens = column.values[column.ends[padded] - 1].astype(np.int64)
        self.last_runs.count((tokens << 32 | lengths[padded] << 16 | last[padded]).astype(np.uint64))
        self.tokens += int(lengths.sum())

    def merge(self, other: RunLengthModel) -> None:
        self.symbols.merge(other.symbols)
        self.last_runs.merge(other.last_runs)
        self.tokens += other.tokens

    @property
    def entropy(self) -> float:
        """Of order 0, of the symbols, in bits a token."""
        return self.symbols.entropy * self.symbols.tokens / max(1, self.tokens)

    def finish(self) -> tuple[RunLength, Order0]:
        """The transform, and the counts of its symbols."""
        from tokzip_core.kernels.run_length import FILL, HIGH, LARGEST_HIGH, LITERAL, SYMBOLS

        rows, repeats = self.last_runs.counts, self.last_runs.ids & np.uint64(65_535)
        kinds, where = np.unique(self.last_runs.ids >> np.uint64(16), return_inverse=True)
        by_kind = np.bincount(where, rows, max(1, kinds.size))
        common = where == by_kind.argmax()
        pad, fill = divmod(int(kinds[by_kind.argmax()]) if kinds.size else 0, 1 << 16)
        ids, counts = self.symbols.ids.astype(np.int64), self.symbols.counts.copy()
        virtual = ids > MAX_ID
        base = int(ids[~virtual][-1]) + 1 if (~virtual).any() else 0
        if base + SYMBOLS > MAX_ID + 1:
            known = np.concatenate(([-1], ids[~virtual]))
            base = int(known[np.flatnonzero(np.diff(known) > SYMBOLS)[0]]) + 1
        runs = np.zeros(SYMBOLS, np.int64)
        runs[ids[virtual] - self._VIRTUAL.base] = counts[virtual]
        for n, times in zip(repeats[common], rows[common], strict=True):
            for symbol in run_symbols(int(n), HIGH, LARGEST_HIGH):
                runs[symbol] -= times  # FILL stands in their place
        runs[FILL] = rows[common].sum()
        counts[ids == pad] -= runs[FILL]
        runs[LITERAL] += 1  # so that a token among the reserved ids costs no escape
        symbols = Order0()
        seen = ~virtual & (counts > 0)
        symbols.add_counts(ids[seen].astype(np.uint32), counts[seen])
        used = np.flatnonzero(runs)
        symbols.add_counts((base + used).astype(np.uint32), runs[used])
        return RunLength(base, pad, fill), symbols


def run_symbols(repeats: int, high: int, largest: int) -> list[int]:
    """The offsets from the base of the run symbols that say `repeats`."""
    symbols = []
    while repeats > 255:
        step = min(repeats >> 8, largest)
        symbols.append(high + step)
        repeats -= step << 8
    return symbols + ([1 + repeats] if repeats else [])
