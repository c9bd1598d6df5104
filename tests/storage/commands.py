"""A command of tokzip in this process, and what of its output is compared. For the tests here."""

from __future__ import annotations

from pipelines import cli


def command(*argv: object, code: int = 0) -> None:
    """`tokzip ARGV…` in this process, which imports torch and Beam once for all tests."""
    assert cli.main([str(a) for a in argv]) == code


def data_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """Of all that a run leaves, what must not differ by where it ran."""
    return {n: b for n, b in files.items() if "/_tokzip/" not in n and n != "summary.json"}
