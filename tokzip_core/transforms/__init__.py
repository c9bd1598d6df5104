"""Transforms: rewrite the symbols of a row before they are coded, and back. One file a transform; see run_length.py."""
