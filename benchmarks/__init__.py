"""Benchmarks, run by hand: each prints what it measured, as ratios within one interleaved run."""
