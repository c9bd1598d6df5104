"""The `tokzip` command: one subcommand a module. Imports each command's module only when it is asked for."""

from __future__ import annotations

import importlib
import logging
import sys

from tokzip_core._version import __version__

COMMANDS = {
    "run": "compress, then embed, into OUTPUT/tokens and OUTPUT/embeddings",
    "compress": "text shards to a token data set",
    "embed": "a token data set to an embedding data set",
    "advise": "measure every codec on a sample of the input, and recommend one",
    "inspect": "what a file or data set of tokzip holds",
    "verify": "tokenize the input again and compare every row of a token data set",
}


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["--version"], ["-V"]):
        print(f"tokzip {__version__}")
        return 0
    if argv and argv[0] in COMMANDS:
        logging.getLogger().setLevel(logging.ERROR)  # Beam, when imported, warns about clients of clouds not in use
        command = importlib.import_module(f"pipelines.{argv[0]}")
        logging.getLogger().setLevel(logging.WARNING)
        code: int = command.main(argv[1:])
        return code
    lines = [f"  {name:<10} {what}" for name, what in COMMANDS.items()]
    help_text = "\n".join(["usage: tokzip COMMAND ...", "", *lines, "", "tokzip COMMAND --help tells of its options."])
    if argv in ([], ["-h"], ["--help"]):
        print(help_text)
        return 0 if argv else 2
    print(f"tokzip: error: no command {argv[0]!r}\n{help_text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
