"""The one place where tokzip's version stands; setup.py reads it without importing the package. Imports nothing."""

__version__ = "0.1.0"
