"""Coders: symbols and what a model says of them, turned into bits. One file a coder; see coders/prefix.py."""
